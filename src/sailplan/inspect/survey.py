"""Looks at all rows of a run, on every core: ranges of rows go to processes that were forked."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from sailplan.errors import DataError
from sailplan.inspect.findings import Tally
from sailplan.inspect.rows import Facts, RowReader
from sailplan.progress import track

_RANGE_ROWS = 128
"""Rows that a process is given at once: few enough that the last ranges end together."""

_FEW_ROWS = 96
"""So few are read faster than processes are started."""

_IN_FLIGHT = 4
"""Ranges for each process that wait or are worked on, so that none waits for this one."""


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
    found = _look_at_all(split, reader, workers or len(os.sched_getaffinity(0)))
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


def _look_at_all(split: Split, reader: RowReader, workers: int) -> Iterator[tuple[int, Facts]]:
    total = len(split.rows)
    starts = range(0, total, _RANGE_ROWS)
    workers = min(workers, len(starts))
    if workers <= 1 or total <= _FEW_ROWS:
        for start in starts:
            yield from _look_at_range(split, reader, start)
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("fork"),
        initializer=_begin,
        initargs=(split, reader),
    ) as pool:
        waiting = list(reversed(starts))
        running: set[Future[list[tuple[int, Facts]]]] = set()
        try:
            while True:
                while waiting and len(running) < workers * _IN_FLIGHT:
                    running.add(pool.submit(_work, waiting.pop()))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process that read rows was killed, most likely for want of memory",
                todo="try --workers 1",
            ) from error
        finally:
            for future in running:
                future.cancel()


_COUNTS = ("length_tokens", "trained_tokens", "image_tokens", "num_images")
_HASHES = ("content", "question")
"""The facts of a row that a survey keeps in columns."""

_given: tuple[Split, RowReader]
"""What a forked process looks at, and with what."""


def _begin(split: Split, reader: RowReader) -> None:
    import torch

    global _given
    torch.set_num_threads(1)  # the parent's threads are not there after a fork
    _given = (split, reader)


def _work(start: int) -> list[tuple[int, Facts]]:
    split, reader = _given
    return list(_look_at_range(split, reader, start))


def _look_at_range(split: Split, reader: RowReader, start: int) -> Iterator[tuple[int, Facts]]:
    columns: dict[str, list[Any]] = split.rows[start : start + _RANGE_ROWS]
    rows = zip(*columns.values(), strict=True)
    for index, values in enumerate(rows, start=start):
        row = dict(zip(columns, values, strict=True))
        yield index, reader.look(split.numbers[index], row)
