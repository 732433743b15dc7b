"""What lies behind a planned tensor: runs of other tensors' elements, and what is done to them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from sailplan.checkpoint.stored import Pieces, Segment, part_of
from sailplan.merge.tensor_plan import Delta, TensorPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Neighbouring elements of a planned tensor."""

    plan: TensorPlan
    """The tensor."""
    start: int
    """The first of its elements."""
    count: int
    """The number of them."""


class Space:
    """What lies behind a planned tensor: runs, one after another, as a storage's elements.

    Args:
        runs: The runs; neighbours that belong together are joined.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = tuple(_joined(runs))
        self._starts = list(accumulate((run.count for run in self.runs), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def take(self, start: int, count: int) -> Iterator[Run]:
        """Yields the runs of `count` elements from `start` on."""
        index = bisect_right(self._starts, start) - 1
        while count > 0:
            run, skip = self.runs[index], start - self._starts[index]
            taken = min(run.count - skip, count)
            yield Run(plan=run.plan, start=run.start + skip, count=taken)
            start, count, index = start + taken, count - taken, index + 1


def _joined(runs: Iterable[Run]) -> Iterator[Run]:
    last: Run | None = None
    for run in runs:
        if last is None:
            last = run
        elif run.plan is last.plan and run.start == last.start + last.count:
            last = Run(plan=last.plan, start=last.start, count=last.count + run.count)
        else:
            yield last
            last = run
    if last is not None:
        yield last


def segments_of(runs: Iterable[Run]) -> Iterator[Segment]:
    """Yields the segments of runs; those that touch in their file are one."""
    last: Segment | None = None
    for run in runs:
        for part in part_of(run.plan.source.segments, run.start, run.count):
            if (
                last is not None
                and (last.file, last.dtype) == (part.file, part.dtype)
                and last.offset + last.num_bytes == part.offset
            ):
                last = replace(last, count=last.count + part.count)
                continue
            if last is not None:
                yield last
            last = part
    if last is not None:
        yield last


def delta_of(runs: Sequence[Run]) -> Delta | None:
    """Returns what adapters do to runs, one after another.

    Raises:
        NotImplementedError: Elements were mixed within the rows that one changes.
    """
    deltas = [run.plan.delta for run in runs if run.plan.delta is not None]
    if not deltas:
        return None
    if len(runs) == 1 and runs[0].count == runs[0].plan.source.numel:
        return deltas[0]
    columns = deltas[0].columns
    whole = all(run.count % columns == 0 and run.start % columns == 0 for run in runs)
    if not whole or any(delta.columns != columns for delta in deltas):
        raise NotImplementedError("rows that an adapter changes are mixed with others")
    return Rows(runs=tuple(runs), columns=columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class Transposed:
    """Matrices that are transposed, after what an adapter does to them."""

    inner: Delta | None
    """What comes before."""
    shape: tuple[int, int]
    """The rows and columns of a matrix before."""

    @property
    def reads(self) -> Mapping[str, Pieces]:
        """What the inner delta reads."""
        return self.inner.reads if self.inner else {}

    @property
    def columns(self) -> int:
        """A whole matrix."""
        return math.prod(self.shape)

    def rows(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        """Returns matrices, each as one row."""
        if self.inner is not None:
            columns = self.inner.columns
            first = start * self.columns // columns
            weight = self.inner.rows(weight.reshape(-1, columns), first)
        return weight.reshape(-1, *self.shape).transpose(1, 2).reshape(-1, self.columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows out of several tensors, each with what an adapter does to it, or nothing."""

    runs: tuple[Run, ...]
    """What the tensor consists of; each run is whole rows."""
    columns: int
    """The elements of a row."""

    @property
    def reads(self) -> Mapping[str, Pieces]:
        """What all of their deltas read."""
        deltas = [run.plan.delta for run in self.runs if run.plan.delta]
        return {name: pieces for delta in deltas for name, pieces in delta.reads.items()}

    def rows(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        """Returns rows of the merged weight."""
        made: list[torch.Tensor] = []
        first, done = 0, 0
        for run in self.runs:
            count = run.count // self.columns
            low, high = max(start, first), min(start + len(weight), first + count)
            if low < high:
                part = weight[done : done + high - low]
                done += high - low
                if run.plan.delta is not None:
                    part = run.plan.delta.rows(part, run.start // self.columns + low - first)
                made.append(part)
            first += count
        return made[0] if len(made) == 1 else torch.cat(made)
