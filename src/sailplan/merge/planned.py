"""Tensors that torch's own functions can rearrange before a byte of them is read.

transformers knows how the names and shapes of a model's files become those of its modules: experts
that are fused, projections that are split, rows that are permuted. Its converters work on tensors.
A `Planned` tensor is one to them, but it has no values: like a tensor on the meta device it has a
geometry, and it knows what lies at each place of its storage. So what the converters do to it,
views, `cat` and `stack`, becomes a new plan, and no architecture has to be written down here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch

from sailplan.checkpoint.stored import Pieces
from sailplan.merge.space import Run, Space, Transposed, delta_of, segments_of
from sailplan.merge.tensor_plan import TensorPlan

_aten = torch.ops.aten


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
                segments=tuple(segments_of(runs)),
            ),
            delta=delta_of(runs),
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
