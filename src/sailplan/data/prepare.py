"""Encodes all rows of a run once, on one process, before training; later runs find them cached."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import xxhash
from accelerate import PartialState

from sailplan.data.encode import Encoder
from sailplan.data.encode_row import RowEncoder, StreamedRow
from sailplan.data.formats import Format
from sailplan.data.images import ImageOpener
from sailplan.data.lengths import within_length
from sailplan.data.mixture import Entry, place
from sailplan.data.sources import Rows
from sailplan.data.streaming import EncodedStream, Stream
from sailplan.errors import DataError
from sailplan.progress import PLAIN_LINE_EVERY_S

_IDS = datasets.List(datasets.Value("int32"))
_FEATURES = datasets.Features(
    {
        "input_ids": _IDS,
        "labels": _IDS,
        "length": datasets.Value("int32"),
        "row": datasets.Value("int64"),
        "entry": datasets.Value("int32"),
        "num_images": datasets.Value("int32"),
        "method": datasets.Value("string"),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What the trainer is given."""

    train: datasets.Dataset | EncodedStream
    """Rows of `input_ids`, `labels` (`[tokens]` each), `length` in tokens, `row`, the number of the
    raw row, and where there are images `entry`, the index of the entry of the data that it is from,
    `place`, which is where a user finds it, and its image columns, which are read from the raw rows
    when a row is asked for.
    """
    eval: datasets.Dataset | None
    """The same of the held-out rows."""
    notes: tuple[str, ...]
    """What is trained, and what was dropped, to be told once."""


def prepare(
    run: Any,
    rows: Rows,
    format: Format,
    encoder: Encoder,
    opener: ImageOpener,
) -> Prepared:
    """Encodes the rows of a run and drops those that are too long.

    One process of a machine encodes, `dataset_num_proc` workers at a time, while the others wait
    and then read its cache. To know of the others, the run's `SFTConfig` must exist already.

    Raises:
        DataError: A row cannot be trained on (named by split and number), too many rows are too
            long, or text-only rows stand where the model cannot have them.
    """
    state = PartialState()
    streams, crosses = isinstance(rows.train, Stream), encoder.family.cross_attention
    if streams and crosses and state.num_processes > 1:
        raise DataError(
            f"{encoder.family.name} on several processes needs to know beforehand which rows have "
            "images, which a stream does not say",
            todo="remove dataset_streaming, or train on one process",
        )
    with state.main_process_first(), state.local_main_process_first():
        notes: list[str] = []
        splits: dict[str, datasets.Dataset] = {}
        for name, raw in (("train", rows.train), ("eval", rows.eval)):
            if raw is None or isinstance(raw, Stream):
                continue
            encoded = _encode(run, name, raw, rows, format, encoder, opener)
            if encoder.family.cross_attention and state.num_processes > 1:
                _refuse_mixed(name, encoded, encoder.family.name)
            if name == "train":
                notes.append(what_is_trained(Counter(encoded["method"]), encoder))
            encoded, dropped = within_length(
                name, encoded, encoder.max_length, run.get("over_length"), rows
            )
            notes += dropped
            splits[name] = _with_images(name, encoded, raw, rows, format.image_fields)
    if isinstance(rows.train, Stream):
        one = StreamedRow(
            rows=_row_encoder("train", rows, format, encoder, opener),
            limit=encoder.max_length,
            fails=run.get("over_length") == "fail",
        )
        train: Any = EncodedStream(
            rows.train, one, rank=state.process_index, world_size=state.num_processes
        )
        return Prepared(train=train, eval=splits.get("eval"), notes=(*notes, _STREAMED))
    return Prepared(train=splits["train"], eval=splits.get("eval"), notes=tuple(notes))


_STREAMED = "rows are read and encoded while training; what is wrong with one shows then"


def _row_encoder(
    split: str, rows: Rows, format: Format, encoder: Encoder, opener: ImageOpener
) -> RowEncoder:
    return RowEncoder(
        split=split, format=format, encoder=encoder, opener=opener, entries=rows.entries
    )


@dataclass(kw_only=True, slots=True)
class _EncodeRow:
    """Encodes one row; a copy of it works in each process of `Dataset.map`."""

    rows: RowEncoder
    numbers: Sequence[int]
    """Each row's number before any were held out."""
    told_at_s: float = 0.0

    def __call__(self, row: Mapping[str, Any], index: int, rank: int | None) -> dict[str, Any]:
        encoded, entry, num_images = self.rows(self.numbers[index], row)
        if not rank:
            self._tell(index)
        return {
            "input_ids": encoded.input_ids,
            "labels": encoded.labels,
            "length": len(encoded.input_ids),
            "row": index,
            "entry": entry,
            "num_images": num_images,
            "method": encoded.method,
        }

    def _tell(self, index: int) -> None:
        """Says how far the first process is, where there is no terminal for a bar."""
        now = time.monotonic()
        if index == 0 or sys.stderr.isatty():
            self.told_at_s = now
        elif now - self.told_at_s >= PLAIN_LINE_EVERY_S:
            self.told_at_s = now
            print(
                f"encoding {self.rows.split}: row {index} of {len(self.numbers)}", file=sys.stderr
            )


def _encode(
    run: Any,
    split: str,
    raw: datasets.Dataset,
    rows: Rows,
    format: Format,
    encoder: Encoder,
    opener: ImageOpener,
) -> datasets.Dataset:
    digest = xxhash.xxh3_128()
    # datasets would pickle the processor for a key, which differs from process to process.
    roots = map(str, (opener.root, *opener.entry_roots))
    keys = (raw._fingerprint, encoder.fingerprint(), repr(format), split, *_FEATURES, *roots)
    for part in keys:
        digest.update(part.encode() + b"\0")
    bars = datasets.are_progress_bars_disabled()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        encoded: datasets.Dataset = raw.map(
            _EncodeRow(
                rows=_row_encoder(split, rows, format, encoder, opener),
                numbers=rows.numbers[split],
            ),
            with_indices=True,
            with_rank=True,
            remove_columns=raw.column_names,
            features=_FEATURES,
            num_proc=run.get("dataset_num_proc"),
            new_fingerprint=digest.hexdigest(),
            desc=f"encoding {split}",
        )
    finally:
        if not bars:
            datasets.enable_progress_bars()
    return encoded


def what_is_trained(methods: Mapping[str, int], encoder: Encoder) -> str:
    """Says what is trained of the rows.

    Args:
        methods: How often each way of finding it was taken.
        encoder: The encoder of the run.
    """
    if encoder.everything:
        what = "all text is trained"
    elif methods.keys() == {"segments"}:
        what = "answers and their end of text are trained, prompts are not"
    else:
        what = "the assistant's words and their end of turn are trained"
    if methods.get("last turn"):
        what += (
            f"; of {methods['last turn']} conversations only the last answer, since the chat "
            "template renders earlier ones otherwise than the model would be asked for them"
        )
    return f"{what}; never images and padding"


def _refuse_mixed(split: str, encoded: datasets.Dataset, family: str) -> None:
    """Some ranks would have images and others none, and wait for each other for ever."""
    num_images = np.asarray(encoded.with_format("numpy")["num_images"][:])
    if num_images.any() and not num_images.all():
        raise DataError(
            f"{np.count_nonzero(num_images == 0)} of {len(num_images)} {split} rows have no image, "
            f"which {family} cannot mix with rows that have some on several processes",
            todo="leave them out, or train on one process",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _JoinImages:
    """Adds the image columns of the raw rows to encoded rows as they are read.

    Joining the tables instead would copy the images of every dataset whose rows were selected.
    """

    split: str
    raw: datasets.Dataset
    numbers: Sequence[int]
    entries: tuple[Entry, ...]

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if "row" not in batch:  # a single column is asked for, such as `length`
            return batch
        numbers = [self.numbers[row] for row in batch["row"]]
        places = [f"{self.split} {place(self.entries, number)}" for number in numbers]
        return {**batch, "place": places, **self.raw[batch["row"]]}


def _with_images(
    split: str,
    encoded: datasets.Dataset,
    raw: datasets.Dataset,
    rows: Rows,
    image_fields: list[str],
) -> datasets.Dataset:
    encoded = encoded.remove_columns(["num_images", "method"])
    if not image_fields:
        return encoded.remove_columns("entry")
    images = raw.select_columns(image_fields)
    return encoded.with_transform(
        _JoinImages(split=split, raw=images, numbers=rows.numbers[split], entries=rows.entries)
    )
