"""Looks at all rows of a run, on every core."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from sailplan.data.workers import in_order
from sailplan.inspect.findings import Tally
from sailplan.inspect.rows import Facts, RowReader
from sailplan.progress import track


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Raw rows to look at."""

    name: str
    """`train` or `eval`."""
    rows: datasets.Dataset
    numbers: Sequence[int]
    """Each row's number before any were held out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What is known of the rows of a split, each array `[rows]`; 0 where a row is broken."""

    split: Split
    length_tokens: NDArray[np.int64]
    trained_tokens: NDArray[np.int64]
    image_tokens: NDArray[np.int64]
    num_images: NDArray[np.int64]
    content: NDArray[np.uint64]
    """A hash of what the model is given."""
    question: NDArray[np.uint64]
    """A hash of what of it is not trained."""
    images: NDArray[np.uint64]
    """Hashes of all images, `[images]`."""
    image_rows: NDArray[np.int64]
    """For each image the index of its row, `[images]`."""
    methods: Mapping[str, int]
    """How often each way of finding what is trained was taken."""

    @property
    def whole(self) -> NDArray[np.int64]:
        """The indices of the rows that can be trained on."""
        return np.flatnonzero(self.length_tokens)


def survey(split: Split, reader: RowReader, tally: Tally, *, workers: int | None = None) -> Survey:
    """Looks at every row of a split, and adds what is wrong to a tally.

    Args:
        split: The rows.
        reader: Looks at one.
        tally: Is added to.
        workers: Processes; as many as there are cores where not given.

    Raises:
        DataError: A process was killed.
        ModelError: The model cannot be trained on any row.
    """
    total = len(split.rows)
    columns: dict[str, NDArray[Any]] = {
        **{name: np.zeros(total, dtype=np.int64) for name in _COUNTS},
        **{name: np.zeros(total, dtype=np.uint64) for name in _HASHES},
    }
    images: list[tuple[int, ...]] = [()] * total
    methods: Counter[str] = Counter()
    found = _look_at_all(split, reader, workers)
    for index, facts in track(found, label=f"inspecting {split.name}", total=total):
        for name, column in columns.items():
            column[index] = getattr(facts, name)
        images[index] = facts.images
        if facts.method:
            methods[facts.method] += 1
        for problem in facts.problems:
            tally.add(split.name, split.numbers[index], problem)
    return Survey(
        split=split,
        **columns,
        images=np.array([image for of_row in images for image in of_row], dtype=np.uint64),
        image_rows=np.repeat(np.arange(total), [len(of_row) for of_row in images]),
        methods=methods,
    )


def _look_at_all(
    split: Split, reader: RowReader, workers: int | None
) -> Iterator[tuple[int, Facts]]:
    def look(rows: range) -> list[tuple[int, Facts]]:
        columns: dict[str, list[Any]] = split.rows[rows.start : rows.stop]
        each = (
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        )
        return [(i, reader.look(split.numbers[i], row)) for i, row in zip(rows, each, strict=True)]

    total = len(split.rows)
    for facts in in_order(look, total, workers=workers, killed_todo="try --workers 1"):
        yield from facts


_COUNTS = ("length_tokens", "trained_tokens", "image_tokens", "num_images")
_HASHES = ("content", "question")
"""The facts of a row that a survey keeps in columns."""
