"""Looks at a merged model again, in ways that share nothing with how it was written.

The files are opened by the libraries that will load them; tensors are computed once more from the
inputs as those libraries read them, and by PEFT's own layers; files are read back from the disk.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from safetensors import safe_open

from sailplan.checkpoint import hub_folder, safetensors
from sailplan.checkpoint.stored import part_of
from sailplan.errors import CheckpointError
from sailplan.merge import write
from sailplan.merge.dequantize import Quantised
from sailplan.merge.reader import Reader
from sailplan.merge.tensor_plan import Shard, TensorPlan

if TYPE_CHECKING:
    from torch import nn

    from sailplan.merge.job import Job

Level = Literal["full", "sample", "none"]
Recompute = Callable[[], torch.Tensor | None]

SAMPLE = 4
"""Tensors of each way that are computed once more where not all are."""
_SMALL_BYTES = 16 << 20
"""Of the tensors that a sample is taken from: it holds two or three copies of one."""
_AT_ONCE = 1 << 20
"""Elements."""
_BROKEN = "check the disk, and merge again into another folder"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What was looked at."""

    recomputed: int = 0
    """Tensors that were computed once more and were equal bit for bit."""
    targets: int = 0
    """Weights that an adapter changes."""
    unchanged: Sequence[str] = ()
    """Those of them that it leaves as they were."""


def verify(
    job: Job,
    output: Path,
    digests: Mapping[str, str],
    level: Level,
    *,
    on_bytes: Callable[[int], object] = lambda _: None,
) -> Verified:
    """Proves that what was written is what was planned.

    Args:
        job: The plan.
        output: The folder.
        digests: What `write` returned.
        level: `full` reads every file back and computes every tensor once more, `sample` a few,
            `none` does nothing.
        on_bytes: Told of bytes that were read back or computed once more, as they come; of
            `effort` in all.

    Raises:
        CheckpointError: Something differs, or an adapter changes nothing at all.
    """
    if level == "none":
        return Verified()
    if level == "full":
        write.verify(job.shards, output, digests, on_bytes)
    for shard in job.shards:
        _reopen(shard, output / shard.name)
    _check_index(job.shards, output)
    written = {plan.name: output / shard.name for shard in job.shards for plan in shard.tensors}
    targets = [plan for plan in job.plans if plan.delta is not None and plan.delta.reads]
    unchanged = [plan.name for plan in targets if not _changes(plan, written[plan.name])]
    if targets and len(unchanged) == len(targets):
        raise CheckpointError(
            f"the adapter changes none of its {len(targets)} weights: it was not trained, or is "
            "too weak for the dtype that is written",
            todo="check the adapter, or write --dtype float32",
        )
    recomputed = 0
    for plan, compute in _recomputations(job, level):
        expected, name = compute(), plan.name
        on_bytes(plan.num_bytes)
        if expected is None:
            continue
        found = _load(written[name], name)
        if not found.reshape(-1).equal(expected.to(found.dtype).reshape(-1)):
            raise CheckpointError(
                f"{name} in {written[name]} is not what it should be", todo=_BROKEN
            )
        recomputed += 1
    return Verified(recomputed=recomputed, targets=len(targets), unchanged=unchanged)


def effort(job: Job, level: Level) -> int:
    """Returns how many bytes `verify` goes through."""
    if level == "none":
        return 0
    again = sum(plan.num_bytes for plan, _ in _recomputations(job, level))
    return again + (job.num_bytes if level == "full" else 0)


def _reopen(shard: Shard, path: Path) -> None:
    """Compares a file's head, as the library reads it, with the plan."""
    with safe_open(path, framework="pt") as file:
        found = {
            name: (tuple(part.get_shape()), part.get_dtype())
            for name in file.keys()  # noqa: SIM118  it is no mapping
            for part in [file.get_slice(name)]
        }
    short = {torch_name: name for name, torch_name in safetensors.DTYPES.items()}
    planned = {plan.name: (plan.shape, short[plan.dtype]) for plan in shard.tensors}
    if found != planned:
        wrong = sorted(found.keys() ^ planned.keys()) or sorted(
            name for name in found if found[name] != planned[name]
        )
        raise CheckpointError(f"{path} does not hold {wrong[0]} as planned", todo=_BROKEN)


def _check_index(shards: Sequence[Shard], output: Path) -> None:
    """Compares what the folder's own index leads to with the plan."""
    found = set(hub_folder.read(output))
    planned = {plan.name for shard in shards for plan in shard.tensors}
    if found != planned:
        missing = sorted(found ^ planned)[0]
        raise CheckpointError(f"{output}: its index is wrong about {missing}", todo=_BROKEN)


def _changes(plan: TensorPlan, path: Path) -> bool:
    """Says whether a weight is another one than its base's, reading no more than is needed."""
    merged = safetensors.read(path)[plan.name].pieces().segments
    with Reader() as reader:
        for start in range(0, plan.source.numel, _AT_ONCE):
            count = min(_AT_ONCE, plan.source.numel - start)
            base = reader.read(part_of(plan.source.segments, start, count))
            found = reader.read(part_of(merged, start, count))
            if not base.to(found.dtype).equal(found):
                return True
    return False


def _recomputations(job: Job, level: Level) -> list[tuple[TensorPlan, Recompute]]:
    """Returns the tensors that can be computed another way, and how; a few or all."""
    ways = (list(_by_peft(job)), list(_copies(job)))
    return [way for found in ways for way in (found if level == "full" else _sample(found))]


def _sample(ways: Sequence[tuple[TensorPlan, Recompute]]) -> list[tuple[TensorPlan, Recompute]]:
    """Returns some of the tensors that take little memory; of large ones alone, the smallest."""
    small = [way for way in ways if way[0].num_bytes <= _SMALL_BYTES]
    if not small:
        return sorted(ways, key=lambda way: way[0].num_bytes)[:1]
    return random.Random(len(small)).sample(small, min(SAMPLE, len(small)))  # noqa: S311


def _copies(job: Job) -> Iterator[tuple[TensorPlan, Recompute]]:
    """Yields the tensors that are one tensor of a file, and how a library reads that."""
    weights = job.base or job.source
    if weights.kind != "model":
        return
    stored = hub_folder.read(weights.folder)
    names = {(tensor.file, tensor.offset, tensor.numel): name for name, tensor in stored.items()}
    for plan in job.plans:
        if plan.delta is None and len(plan.source.segments) == 1:
            (only,) = plan.source.segments
            name = names.get((only.file, only.offset, only.count))
            if name is not None:
                yield plan, partial(_load, only.file, name)


def _by_peft(job: Job) -> Iterator[tuple[TensorPlan, Recompute]]:
    """Yields the tensors that an adapter changes as a whole, and how PEFT's own layer does it."""
    if job.adapter is None or job.source.kind != "adapter" or job.model is None:
        return
    outputs = {id(plan.delta): plan for plan in job.plans if plan.delta is not None}
    for module in job.modules:
        plan = outputs.get(id(module.delta))
        if plan is not None and module.delta is not None and module.delta.reads:
            yield plan, partial(_merged_by_peft, job.adapter.folder, job.model, module)


def _merged_by_peft(adapter: Path, model: nn.Module, module: TensorPlan) -> torch.Tensor | None:
    from sailplan.merge.recompute import recompute

    with Reader() as reader:
        weight = reader.read(module.source.segments).reshape(module.shape)
    if isinstance(module.delta, Quantised):
        weight = module.delta.at_once(weight)
    wide = torch.promote_types(weight.dtype, getattr(torch, module.dtype))
    return recompute(adapter, model, module.name, weight.to(wide))


def _load(path: Path, name: str) -> torch.Tensor:
    """Returns a tensor as the libraries read it."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return cast(torch.Tensor, file.get_tensor(name))
    content = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    return cast(torch.Tensor, content[name])
