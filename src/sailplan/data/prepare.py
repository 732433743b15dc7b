"""Encodes all rows of a run once, before training; later runs find them in the token cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState

from sailplan.data.encode import Encoder
from sailplan.data.encode_row import RowEncoder, StreamedRow
from sailplan.data.formats import Format
from sailplan.data.images import ImageOpener
from sailplan.data.lengths import within_length
from sailplan.data.ranks import wait_for_ranks
from sailplan.data.sources import Rows
from sailplan.data.streaming import EncodedStream, Stream
from sailplan.data.token_cache import encoded_rows
from sailplan.data.token_rows import Origins, as_arrays, column
from sailplan.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What the trainer is given."""

    train: datasets.Dataset | EncodedStream
    """Rows of `input_ids` and `labels` (arrays `[tokens]` of 32-bit integers), of `length` and
    `trained`, which are counts of tokens, `num_images`, `image_tokens`, which are those that stand
    for them, `row`, the index of the raw row, `entry`, the index of the entry of the data that it
    is from, `method`, how it was found what is trained, and `place`, where a user finds the row.
    Where there are images, also the raw image columns, read when a row is asked for.
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

    One process encodes, with `dataset_num_proc` workers, while the others wait for it as long as it
    takes (see `token_cache`). To know of the others, the run's `SFTConfig` must exist already.

    Raises:
        DataError: A row cannot be trained on (named by split and number), too many rows are too
            long, or text-only rows stand where the model cannot have them.
        OutputError: The cache cannot be written.
    """
    state = PartialState()
    streams, crosses = isinstance(rows.train, Stream), encoder.family.cross_attention
    if streams and crosses and state.num_processes > 1:
        raise DataError(
            f"{encoder.family.name} on several processes needs to know beforehand which rows have "
            "images, which a stream does not say",
            todo="remove dataset_streaming, or train on one process",
        )
    notes: list[str] = []
    splits: dict[str, datasets.Dataset] = {}
    for name, raw in (("train", rows.train), ("eval", rows.eval)):
        if raw is None or isinstance(raw, Stream):
            continue
        splits[name], told = encode_split(name, run, rows, format, encoder, opener)
        notes += told
    wait_for_ranks()
    if isinstance(rows.train, Stream):
        one = StreamedRow(
            rows=_row_encoder("train", rows, format, encoder, opener),
            limit=encoder.max_length,
            fails=run.get("over_length") == "fail",
            leaves_out=run.get("max_bad_samples") > 0,
        )
        train: Any = EncodedStream(
            rows.train, one, rank=state.process_index, world_size=state.num_processes
        )
        return Prepared(train=train, eval=splits.get("eval"), notes=(*notes, _STREAMED))
    return Prepared(train=splits["train"], eval=splits.get("eval"), notes=tuple(notes))


def encode_split(
    name: str, run: Any, rows: Rows, format: Format, encoder: Encoder, opener: ImageOpener
) -> tuple[datasets.Dataset, list[str]]:
    """Encodes one split, and drops what is too long.

    Args:
        name: `train` or `eval`; its rows are read whole, not streamed.
        run: The run.
        rows: Its rows.
        format: How they become samples.
        encoder: Encodes them.
        opener: Opens their images.

    Returns:
        The rows as `Prepared` has them, and what to tell of them.

    Raises:
        DataError: As for `prepare`.
        OutputError: The cache cannot be written.
    """
    state = PartialState()
    raw = rows.train if name == "train" else rows.eval
    encoded = encoded_rows(
        raw,
        rows.numbers[name],
        _row_encoder(name, rows, format, encoder, opener),
        workers=run.get("dataset_num_proc"),
        speaks=state.is_local_main_process,
    )
    if encoder.family.cross_attention and state.num_processes > 1:
        _refuse_mixed(name, encoded, encoder.family.name)
    trained = [what_is_trained(_methods(encoded), encoder)] if name == "train" else []
    encoded, dropped = within_length(
        name, encoded, encoder.max_length, run.get("over_length"), rows
    )
    arrays = as_arrays(encoded, _origins(name, raw, rows, format.image_fields))
    return arrays, [*trained, *dropped]


_STREAMED = "rows are read and encoded while training; what is wrong with one shows then"


def _row_encoder(
    split: str, rows: Rows, format: Format, encoder: Encoder, opener: ImageOpener
) -> RowEncoder:
    return RowEncoder(
        split=split, format=format, encoder=encoder, opener=opener, entries=rows.entries
    )


def _methods(encoded: datasets.Dataset) -> dict[str, int]:
    """Returns how often each way of finding what is trained was taken."""
    counts = encoded.data.column("method").value_counts().to_pylist()
    return {count["values"]: count["counts"] for count in counts}


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
    num_images = column(encoded, "num_images")
    if num_images.any() and not num_images.all():
        raise DataError(
            f"{np.count_nonzero(num_images == 0)} of {len(num_images)} {split} rows have no image, "
            f"which {family} cannot mix with rows that have some on several processes",
            todo="leave them out, or train on one process",
        )


def _origins(split: str, raw: datasets.Dataset, rows: Rows, image_fields: list[str]) -> Origins:
    numbers = rows.numbers[split]
    return Origins(
        split=split,
        images=raw.select_columns(image_fields) if image_fields else None,
        numbers=numbers if isinstance(numbers, range) else np.asarray(numbers),
        entries=rows.entries,
    )
