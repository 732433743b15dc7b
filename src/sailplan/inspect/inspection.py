"""Inspects a run: loads its data as training does, looks at every row, and judges the whole."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import datasets
import numpy as np
from numpy.typing import NDArray

from sailplan.data.collator import Collator
from sailplan.data.default_template import complete_template, is_chat
from sailplan.data.encode import Encoder
from sailplan.data.encode_row import RowEncoder
from sailplan.data.formats import resolve_format
from sailplan.data.images import image_opener
from sailplan.data.mixture import place as place_of
from sailplan.data.prepare import what_is_trained
from sailplan.data.sources import Rows, load_rows
from sailplan.data.streaming import Stream
from sailplan.inspect.batching import batching_of, padding
from sailplan.inspect.findings import Finding, Problem, Tally
from sailplan.inspect.histogram import Summary, summary
from sailplan.inspect.judge import judge_lengths, judge_text_only
from sailplan.inspect.overlap import find_duplicates, find_leaks
from sailplan.inspect.padding import Padding
from sailplan.inspect.rows import RowReader
from sailplan.inspect.samples import Shown, pick, show
from sailplan.inspect.survey import Split, Survey, survey
from sailplan.model.families import family_of
from sailplan.model.processor import load_processor_and_tokens
from sailplan.model.source import load_config
from sailplan.model.vocabulary import grown

if TYPE_CHECKING:
    from sailplan.run.config import Run

STREAM_ROWS = 2000
"""Rows of a stream that are looked at where no number is given."""

SHARDED = ("zero3", "zero3_offload", "fsdp2")
"""Strategies under which every rank gathers the vision tower in every step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitFacts:
    """The rows of a split in numbers."""

    name: str
    num_rows: int
    """Rows that were looked at."""
    num_whole: int
    """Rows that can be trained on."""
    num_text_only: int
    """Of these, rows without an image."""
    num_images: int
    length_tokens: Summary | None
    """Of the rows that can be trained on."""
    trained_tokens: Summary | None
    image_tokens: Summary | None
    """Of the rows with images, all tokens that stand for images or frame them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What `sailplan inspect` knows of a run."""

    model: str
    data: str
    """What was asked for."""
    format: str
    limit_tokens: int | None
    """Most tokens of a sample."""
    notes: tuple[str, ...]
    """What is trained, and what else training would tell."""
    splits: tuple[SplitFacts, ...]
    padding: Padding | None
    """Of the training rows."""
    findings: tuple[Finding, ...]
    """The worst first."""
    samples: tuple[Shown, ...]
    seconds: float
    """That looking at the rows took."""
    decoded: bool
    """Whether pixels were decoded."""

    @property
    def rows_per_s(self) -> float:
        """Rows that were looked at each second."""
        return sum(split.num_rows for split in self.splits) / max(self.seconds, 1e-9)


def inspect_run(
    run: Run,
    *,
    num_samples: int = 3,
    max_rows: int | None = None,
    decode: bool = False,
    workers: int | None = None,
) -> Inspection:
    """Looks at the data of a run as training will see it.

    Args:
        run: The run; its environment must be set.
        num_samples: Samples to show.
        max_rows: Most rows of a split to look at, the first ones; all where not given.
        decode: Decode the pixels of every image.
        workers: Processes; the run's `dataset_num_proc`, else the number of cores.

    Raises:
        SailplanError: Model or data cannot be loaded at all.
    """
    # Its threads would not survive the fork of the processes that read rows.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    processor, added_ids = load_processor_and_tokens(run)
    rows = load_rows(run)
    format = resolve_format(run, rows)
    opener = image_opener(run, rows)
    family = grown(family_of(load_config(run)), added_ids)
    told = complete_template(processor, family, chat=is_chat(format, rows))
    notes = [*run.differences(), *told]
    settings = batching_of(run, family)
    encoder = Encoder.of(run, processor, family)

    tally = Tally()
    splits = _splits(rows, max_rows, tally)
    reader = RowReader(encoder, format, opener, rows.entries, decode=decode)
    start = time.monotonic()
    surveys = [
        survey(split, reader, tally, workers=workers or run.get("dataset_num_proc"))
        for split in splits
    ]
    seconds = time.monotonic() - start

    def place(number: int) -> str:
        return place_of(rows.entries, number)

    for found in surveys:
        find_duplicates(found, tally, place)
        judge_lengths(run, found, encoder.max_length, tally)
        judge_text_only(run, found, crosses=family.cross_attention, name=family.name, tally=tally)
    for held_out in surveys[1:]:
        find_leaks(surveys[0], held_out, tally, place)

    train = surveys[0]
    encode = RowEncoder(
        split="train", format=format, encoder=encoder, opener=opener, entries=rows.entries
    )
    collator = Collator(
        processor,
        family,
        format,
        opener,
        dummy_image=run.launch.strategy in SHARDED,
        pad_to_multiple_of=None if settings.packs else settings.multiple,
    )
    kept = _kept(train, encoder.max_length)
    shown = show(
        train.split,
        pick(kept.tolist(), num_samples),
        encode,
        collator,
        # Packed, a sample has nothing to do with those of the same row.
        micro_batch_size=1 if settings.packs else settings.micro_batch_size,
        tally=tally,
    )
    return Inspection(
        model=str(run.get("model_name_or_path")),
        data=_data_name(run),
        format=format.name,
        limit_tokens=encoder.max_length,
        notes=(*notes, *([what_is_trained(train.methods, encoder)] if train.methods else [])),
        splits=tuple(_facts(found) for found in surveys),
        padding=padding(
            run,
            settings,
            processor,
            family,
            lengths=train.length_tokens[kept],
            image_tokens=train.image_tokens[kept],
        ),
        findings=tally.findings(place),
        samples=tuple(shown),
        seconds=seconds,
        decoded=decode,
    )


def _splits(rows: Rows, max_rows: int | None, tally: Tally) -> list[Split]:
    raw, numbers = rows.train, rows.numbers["train"]
    if isinstance(raw, Stream):
        count = max_rows or STREAM_ROWS
        first = list(islice(raw.numbered(), count))
        numbers = [number for number, _ in first]
        message = f"{len(first)} rows were looked at"
        tally.add("train", None, Problem(name="streamed", message=message))
        raw = datasets.Dataset.from_list([dict(row) for _, row in first], features=raw.features)
    splits = [Split(name="train", rows=raw, numbers=numbers)]
    if rows.eval is not None:
        splits.append(Split(name="eval", rows=rows.eval, numbers=rows.numbers["eval"]))
    if max_rows is None:
        return splits
    return [
        Split(
            name=split.name,
            rows=split.rows.select(range(min(max_rows, len(split.rows)))),
            numbers=split.numbers,
        )
        for split in splits
    ]


def _kept(found: Survey, limit: int | None) -> NDArray[np.int64]:
    """Returns the indices of the rows that training would keep."""
    lengths = found.length_tokens[found.whole]
    fitting = found.whole[lengths <= (limit or np.inf)]
    return fitting if len(fitting) else found.whole


def _facts(found: Survey) -> SplitFacts:
    whole = found.whole
    with_images = whole[found.num_images[whole] > 0]
    return SplitFacts(
        name=found.split.name,
        num_rows=len(found.length_tokens),
        num_whole=len(whole),
        num_text_only=len(whole) - len(with_images),
        num_images=int(found.num_images.sum()),
        length_tokens=summary(found.length_tokens[whole]),
        trained_tokens=summary(found.trained_tokens[whole]),
        image_tokens=summary(found.image_tokens[with_images]),
    )


def _data_name(run: Run) -> str:
    entries = run.get("datasets") or [{"path": run.get("dataset_name")}]
    return ", ".join(str(entry["path"]) for entry in entries)
