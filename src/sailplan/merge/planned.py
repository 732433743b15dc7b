"""Tensors that torch's own functions can rearrange before a byte of them is read.

transformers knows how the names and shapes of a model's files become those of its modules: experts
that are fused, projections that are split, rows that are permuted. Its converters work on tensors.
A `Planned` tensor is one to them, but it has no values: like a tensor on the meta device it has a
geometry, and it knows what lies at each place of its storage. So what the converters do to it,
views, `cat` and `stack`, becomes a new plan, and no architecture has to be written down here.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, cast

import torch

from sailplan.checkpoint.stored import Pieces, Segment, part_of
from sailplan.merge.tensor_plan import Delta, TensorPlan

_aten = torch.ops.aten


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


class Planned(torch.Tensor):
    """A tensor without values: a geometry over a `Space`.

    Args:
        space: What lies behind it.
        geometry: A meta tensor with its shape, strides and offset.

    Raises:
        NotImplementedError: From any function of torch that neither views nor joins tensors.
    """

    space: Space

    def __new__(cls, space: Space, geometry: torch.Tensor) -> Planned:  # noqa: D102
        made: Planned = torch.Tensor._make_wrapper_subclass(
            cls,
            geometry.shape,
            strides=geometry.stride(),
            storage_offset=int(geometry.storage_offset()),
            dtype=geometry.dtype,
            device=torch.device("meta"),
        )
        made.space = space
        return made

    @classmethod
    def of(cls, plan: TensorPlan) -> Planned:
        """Returns the tensor of a plan."""
        space = Space([Run(plan=plan, start=0, count=plan.source.numel)])
        return cls(space, _geometry(plan.shape, plan.dtype))

    def plan(self, name: str) -> TensorPlan:
        """Returns the plan that it has become.

        Raises:
            NotImplementedError: Elements were mixed within the rows that an adapter changes.
        """
        runs = self.runs()
        dtype = runs[0].plan.dtype if runs else str(self.dtype).removeprefix("torch.")
        return TensorPlan(
            name=name,
            dtype=dtype,
            source=Pieces(
                shape=tuple(self.shape),
                segments=tuple(_adjoined(runs)),
            ),
            delta=_delta(runs),
        )

    def runs(self) -> tuple[Run, ...]:
        """Returns its elements in row-major order."""
        return Space(_gathered(self)).runs

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own is untyped
        cls, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Does to the geometry what torch would do to a tensor."""
        if func in (_aten.cat.default, _aten.stack.default):
            return _joined_along(func, *args, **(kwargs or {}))
        first = args[0]
        if func is _aten.clone.default:
            return cls(Space(first.runs()), _geometry(tuple(first.shape), first.dtype))
        if func is _aten._unsafe_view.default:  # reshape's, of what it has just cloned
            func = _aten.view.default
        if not func.is_view:
            raise NotImplementedError(f"{func} needs the values of a tensor that is only planned")
        seen = func(_meta(first), *args[1:], **(kwargs or {}))
        if isinstance(seen, torch.Tensor):
            return cls(first.space, seen)
        return [cls(first.space, one) for one in seen]


def strided(plan: TensorPlan, shape: Sequence[int], stride: Sequence[int]) -> Planned:
    """Returns a tensor whose elements lie in strides within those of a plan."""
    flat = Planned.of(plan)
    return Planned(flat.space, _meta(flat).as_strided(shape, stride))


def _geometry(shape: tuple[int, ...], dtype: str | torch.dtype) -> torch.Tensor:
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return torch.empty(shape, dtype=kind, device="meta")


def _meta(planned: Planned) -> torch.Tensor:
    storage = _geometry((len(planned.space),), planned.dtype)
    return storage.as_strided(planned.shape, planned.stride(), int(planned.storage_offset()))


def _joined_along(func: Any, tensors: Sequence[Planned], dim: int = 0) -> Planned:
    """Joins tensors: of each block before the dimension, every tensor's part in turn."""
    made = func([_meta(tensor) for tensor in tensors], dim)
    before = math.prod(made.shape[: dim % made.dim()])
    spaces = [Space(tensor.runs()) for tensor in tensors]

    def runs() -> Iterator[Run]:
        for block in range(before):
            for space in spaces:
                size = len(space) // before
                yield from space.take(block * size, size)

    return Planned(Space(runs()), _geometry(tuple(made.shape), made.dtype))


def _gathered(planned: Planned) -> Iterator[Run]:
    """Yields a tensor's elements in row-major order, in the longest runs."""
    if planned.numel() == 0:
        return
    shape, stride = list(planned.shape), list(planned.stride())
    offset = int(planned.storage_offset())
    length = 1
    while shape and (shape[-1] == 1 or stride[-1] == length):
        length *= shape.pop()
        stride.pop()
    if length == 1 and shape:
        yield from _transposed(planned)
        return
    for start in _offsets(shape, stride):
        yield from planned.space.take(offset + start, length)


def _offsets(shape: Sequence[int], stride: Sequence[int]) -> Iterator[int]:
    if not shape:
        yield 0
        return
    for index in range(shape[0]):
        for rest in _offsets(shape[1:], stride[1:]):
            yield index * stride[0] + rest


def _transposed(planned: Planned) -> Iterator[Run]:
    """Yields one run of a new plan, whose matrices are those of the old one, transposed."""
    if planned.dim() < 2:
        raise NotImplementedError("single elements of a planned tensor lie apart")
    upright = cast(Planned, planned.transpose(-1, -2))
    if upright.stride()[-1] != 1:
        raise NotImplementedError(f"a tensor lies in strides {planned.stride()}")
    runs = upright.runs()
    inner = Planned(Space(runs), _geometry(tuple(upright.shape), upright.dtype)).plan("")
    rows, columns = inner.shape[-2:]
    delta = inner.delta
    plan = TensorPlan(
        name=runs[0].plan.name,
        dtype=inner.dtype,
        source=Pieces(shape=tuple(planned.shape), segments=inner.source.segments),
        delta=(
            delta.inner
            if isinstance(delta, Transposed) and delta.shape == (columns, rows)
            else Transposed(inner=delta, shape=(rows, columns))
        ),
    )
    yield Run(plan=plan, start=0, count=plan.source.numel)


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


def _adjoined(runs: Iterable[Run]) -> Iterator[Segment]:
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


def _delta(runs: Sequence[Run]) -> Delta | None:
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
