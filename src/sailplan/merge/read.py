"""Reads any source as planned tensors, under the names that it has there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sailplan.checkpoint import dcp, hub_folder, zero
from sailplan.checkpoint.stored import Pieces, Segment, StoredTensor
from sailplan.merge.planned import strided
from sailplan.merge.source import Source
from sailplan.merge.tensor_plan import TensorPlan

FLOATS = ("float32", "bfloat16", "float16")
"""What weights can be written as."""


def read(source: Source, dtype: str | None = None) -> list[TensorPlan]:
    """Returns the tensors of a source, each in the dtype that the model was trained in.

    Args:
        source: A model or a sharded checkpoint.
        dtype: One of `FLOATS`, where another than that is wanted. Of a sharded checkpoint,
            float32 are the optimizer's master weights.

    Raises:
        CheckpointError: Something is missing or broken.
    """
    if source.kind == "zero":
        plans = _zero(zero.read(source.folder), dtype)
    elif source.kind == "dcp":
        found = dcp.read(source.folder).tensors
        plans = [_whole(name, pieces) for name, pieces in found.items()]
    else:
        plans = [
            stored_plan(name, tensor) for name, tensor in hub_folder.read(source.folder).items()
        ]
    return [cast(plan, dtype) for plan in plans]


def cast(plan: TensorPlan, dtype: str | None) -> TensorPlan:
    """Returns a plan that is written in another dtype; whole numbers stay as they are."""
    if dtype is None or plan.dtype not in (*FLOATS, "float64"):
        return plan
    return replace(plan, dtype=dtype)


def stored_plan(name: str, tensor: StoredTensor) -> TensorPlan:
    """Returns the plan of a tensor in a file, whose elements may lie in strides."""
    if tensor.is_contiguous:
        return TensorPlan(name=name, dtype=tensor.dtype, source=tensor.pieces())
    flat = Segment(file=tensor.file, offset=tensor.offset, count=tensor.span, dtype=tensor.dtype)
    source = Pieces(shape=(tensor.span,), segments=(flat,))
    plan = TensorPlan(name=name, dtype=tensor.dtype, source=source)
    return strided(plan, tensor.shape, tensor.stride).plan(name)


def _zero(found: zero.ZeroCheckpoint, dtype: str | None) -> list[TensorPlan]:
    """Plans a ZeRO checkpoint: masters, or the copy in the model's dtype where that is wanted."""
    plans: dict[str, TensorPlan] = {}
    for name, pieces in {**found.kept, **found.trained}.items():
        own = found.dtypes.get(name, pieces.segments[0].dtype if pieces.segments else "float32")
        whole = found.working.get(name)
        source = whole if whole is not None and dtype in (None, own) else pieces
        plans[name] = TensorPlan(name=name, dtype=own, source=source)
    tied: Mapping[str, str] = found.aliases
    for alias, stored in tied.items():
        if stored in plans:
            plans.setdefault(alias, replace(plans[stored], name=alias))
    return list(plans.values())


def _whole(name: str, pieces: Pieces) -> TensorPlan:
    dtype = pieces.segments[0].dtype if pieces.segments else "float32"
    return TensorPlan(name=name, dtype=dtype, source=pieces)
