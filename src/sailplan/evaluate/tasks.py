"""What is to be asked of whom: rows, questions and their keys, without a model in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from sailplan.data.collator import Collator
from sailplan.data.default_template import complete_template, is_chat
from sailplan.data.encode import Encoder
from sailplan.data.formats import resolve_format
from sailplan.data.images import image_opener
from sailplan.data.prepare import encode_split
from sailplan.data.sources import load_rows
from sailplan.data.streaming import Stream
from sailplan.data.token_rows import column
from sailplan.errors import DataError, RunFileError
from sailplan.evaluate.answers import Waiting
from sailplan.evaluate.comparison import Side
from sailplan.evaluate.held_out import held_out_questions
from sailplan.evaluate.journal import key_of
from sailplan.evaluate.sides import Load, fingerprint, loads_of
from sailplan.model.families import family_of
from sailplan.model.processor import load_processor_and_tokens
from sailplan.model.source import load_config
from sailplan.model.vocabulary import grown
from sailplan.progress import track

if TYPE_CHECKING:
    import datasets

    from sailplan.data.formats import Format
    from sailplan.data.images import ImageOpener
    from sailplan.run.config import Run

HELD_OUT = "eval"
"""The rows that the run itself holds out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is compared, and over which rows."""

    sides: tuple[Side, ...]
    split: str = HELD_OUT
    """`eval`, `train`, or a split of the dataset."""
    num_samples: int = 50
    """Rows that are answered; drawn by the seed where there are more."""
    num_loss_rows: int | None = None
    """Rows over which losses are taken; None takes all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is asked of the sides that share a loaded model."""

    load: Load
    processor: Any
    added_ids: tuple[int, ...]
    """Tokens that the run adds."""
    chat: bool
    """Whether it is asked with conversations."""
    collate: Callable[[Sequence[Any]], dict[str, Any]]
    """Makes padded batches of encoded rows."""
    answers: Mapping[str, tuple[Waiting, ...]]
    """By side: the rows that it is to answer, in the order of the data."""
    numbers: tuple[int, ...]
    """Each one's number in the split."""
    loss_rows: datasets.Dataset
    """The encoded rows over which losses are taken, in the order of the data."""
    loss_numbers: tuple[int, ...]
    """Each one's number in the split."""
    losses: Mapping[str, tuple[str, ...]]
    """By side: the keys of its losses on them."""
    lengths: tuple[int, ...]
    """Their tokens."""
    num_held_out: int
    """Rows of the split."""
    notes: tuple[str, ...]


def tasks_of(run: Run, request: Request) -> list[Task]:
    """Returns what is to be asked, a task for each model that has to be loaded.

    Args:
        run: The run.
        request: What is compared.

    Raises:
        DataError: A row is wrong, or no rows are held out.
        ModelError: A model's processor is missing or broken.
    """
    tasks: list[Task] = []
    rows: list[int] = []
    for load in loads_of(run, request.sides):
        task, rows = _task(load, request, rows)
        tasks.append(task)
    return tasks


def _task(load: Load, request: Request, wanted: list[int]) -> tuple[Task, list[int]]:
    """Returns a task, and the raw rows that are answered: those that are wanted, if any."""
    run, name = _of_split(load.run, request.split)
    processor, added_ids = load_processor_and_tokens(run)
    raw = load_rows(run)
    there = raw.train if name == "train" else raw.eval
    if isinstance(there, Stream):
        raise RunFileError("--split train of rows that are streamed", todo="name another split")
    if not there:
        raise DataError(
            "the run holds no rows out to compare on",
            todo="set eval_size or dataset_test_split, or name a split: --split NAME",
        )
    format, opener = resolve_format(run, raw), image_opener(run, raw)
    chat = is_chat(format, raw)
    family = grown(family_of(load_config(run)), added_ids)
    notes = complete_template(processor, family, chat=chat)
    encoder = Encoder.of(run, processor, family)
    encoded, told = encode_split(name, run, raw, format, encoder, opener)
    kept = column(encoded, "row")
    lengths = column(encoded, "length")
    drawn = np.random.default_rng(run.generation.seed).permutation(len(kept))
    positions = np.sort(drawn[: request.num_samples])
    if wanted:
        at = {int(row): position for position, row in enumerate(kept)}
        if missing := [row for row in wanted if row not in at]:
            raise DataError(
                f"row {missing[0]} of {name} is longer than {load.run.get('model_name_or_path')} "
                "takes",
                todo="raise max_length, or leave that model out",
            )
        positions = np.array([at[row] for row in wanted])
    chosen = [int(kept[position]) for position in positions]
    asked = held_out_questions(raw, format, opener, chosen, split=name)
    of_encoder = encoder.fingerprint()
    questions = [key_of("answer", of_encoder, one.identity()) for one in asked]
    count = request.num_loss_rows
    losing = np.sort(drawn if count is None else drawn[:count])
    loss_rows = encoded.select(losing.tolist())
    reading = track(loss_rows, label="reading held-out rows", total=len(loss_rows))
    identities = [_identity(row, format, opener) for row in reading]
    weights = {side.name: fingerprint(load.run, side) for side in load.sides}
    generation = load.run.generation.model_dump(exclude={"batch_size"})
    precision = bool(load.run.get("bf16")), bool(load.run.get("fp16"))
    task = Task(
        load=load,
        processor=processor,
        added_ids=added_ids,
        chat=chat,
        collate=Collator(processor, family, format, opener, dummy_image=False),
        answers={
            name: tuple(
                Waiting(
                    key=key_of("answer", of, question, generation),
                    asked=one,
                    num_tokens=int(lengths[position]),
                )
                for question, one, position in zip(questions, asked, positions, strict=True)
            )
            for name, of in weights.items()
        },
        numbers=tuple(chosen),
        loss_rows=loss_rows,
        loss_numbers=tuple(kept[losing].tolist()),
        losses={
            name: tuple(key_of("loss", of, *precision, one) for one in identities)
            for name, of in weights.items()
        },
        lengths=tuple(lengths[losing].tolist()),
        num_held_out=len(there),
        notes=(*notes, *told),
    )
    return task, chosen


def _of_split(run: Run, split: str) -> tuple[Run, str]:
    """Returns the run as it holds the split out, and which of its parts that is."""
    if split in (HELD_OUT, "train"):
        return run, split
    explicit = {**run.explicit, "dataset_test_split": split}
    for name in ("eval_size", "test_split_size"):
        explicit.pop(name, None)
    return replace(run, explicit=explicit), HELD_OUT


def _identity(row: dict[str, Any], format: Format, opener: ImageOpener) -> str:
    """Returns what tells an encoded row from others."""
    digest = xxhash.xxh3_128(np.asarray(row["input_ids"]).tobytes())
    digest.update(np.asarray(row["labels"]).tobytes())
    for reference in format.images(row):
        digest.update(opener.identity(reference, row.get("entry") or 0).encode())
    return digest.hexdigest()
