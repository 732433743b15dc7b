"""Loads the states of a ZeRO checkpoint, one file a rank, and proves that they belong together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailplan.checkpoint import torch_zip
from sailplan.checkpoint.inert import Inert
from sailplan.checkpoint.stored import StoredTensor, number
from sailplan.errors import CheckpointError

_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroStates:
    """What the ranks wrote, tensors as places in their files."""

    stage: int
    """1, 2 or 3."""
    world_size: int
    """The ranks that wrote it."""
    models: Sequence[Mapping[str, Any]]
    """Model states: of every rank under ZeRO-3, else of one."""
    optimizers: Sequence[Mapping[str, Any]]
    """Optimizer states of every rank."""
    masters: Sequence[Sequence[StoredTensor]]
    """Of every rank, its flat vectors of float32 weights."""


def is_zero(folder: Path) -> bool:
    """Says whether a folder holds the optimizer states of a ZeRO checkpoint."""
    return folder.is_dir() and any(_OPTIMIZER.fullmatch(path.name) for path in folder.iterdir())


def division(folder: Path) -> tuple[int, bool]:
    """Returns by how many ranks a checkpoint was saved, and whether under ZeRO-3; from its names.

    Raises:
        CheckpointError: It was saved with tensor parallelism.
    """
    partitioned = any(path.name.startswith("zero_") for path in _files(folder, _MODEL))
    return len(_files(folder, _OPTIMIZER)), partitioned


def load(folder: Path) -> ZeroStates:
    """Loads the states of all ranks; no weights, and no code of a pickle.

    Raises:
        CheckpointError: A rank's file is missing, truncated, or of another checkpoint.
    """
    model_files, optimizer_files = _files(folder, _MODEL), _files(folder, _OPTIMIZER)
    if not optimizer_files:
        raise CheckpointError(f"{folder} holds no *_optim_states.pt: it is no ZeRO checkpoint")
    if not model_files:
        raise CheckpointError(f"{folder} holds no *_model_states.pt", todo="get the folder again")
    models = [_read(path, "module") for path in model_files]
    optimizers = [
        _read(path, "optimizer_state_dict")["optimizer_state_dict"] for path in optimizer_files
    ]
    stage = _stage(optimizers[0])
    world_size = _world_size(optimizers[0], len(optimizers))
    _check_ranks(folder, optimizers, world_size, optimizer_files)
    if stage == 3 and len(models) != world_size:
        raise _missing(folder, "model_states", len(models), world_size)
    _check_step([model.get("global_steps") for model in models], model_files)
    _check_step([_step(states) for states in optimizers], optimizer_files)
    masters = [
        _masters(states, path) for states, path in zip(optimizers, optimizer_files, strict=True)
    ]
    return ZeroStates(
        stage=stage, world_size=world_size, models=models, optimizers=optimizers, masters=masters
    )


def _read(path: Path, needed: str) -> Mapping[str, Any]:
    states = torch_zip.read(path)
    if not isinstance(states, Mapping) or not isinstance(states.get(needed), Mapping):
        raise CheckpointError(
            f"{path} holds no {needed}: it is not DeepSpeed's", todo="get the file again"
        )
    return states


def _files(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Returns a rank's files in the order of the ranks, as numbers."""
    found: list[tuple[int, Path]] = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        if int(match[2]) != 0:
            raise CheckpointError(
                f"{folder} was written with tensor parallelism ({path.name})",
                allowed="checkpoints of data parallelism and ZeRO",
            )
        found.append((int(match[1] or 0), path))
    return [path for _, path in sorted(found)]


def _stage(states: Mapping[str, Any]) -> int:
    """Returns the stage; DeepSpeed's BF16 optimizer, which is ZeRO-1, does not write it."""
    stage = states.get("zero_stage", 1)
    return int(stage.args[0]) if isinstance(stage, Inert) else int(stage)


def _world_size(states: Mapping[str, Any], num_files: int) -> int:
    count = states.get("partition_count", num_files)
    return max(count) if isinstance(count, list) else int(count)


def _check_ranks(
    folder: Path, states: Sequence[Mapping[str, Any]], world_size: int, files: Sequence[Path]
) -> None:
    ranks = [int(_OPTIMIZER.fullmatch(path.name)[1]) for path in files]  # type: ignore[index]
    if ranks != list(range(world_size)):
        raise _missing(folder, "optim_states", len(ranks), world_size)
    for path, state in zip(files, states, strict=True):
        here = (_stage(state), _world_size(state, len(files)))
        if here != (_stage(states[0]), world_size):
            raise CheckpointError(
                f"{path} is of ZeRO-{here[0]} on {here[1]} ranks, {files[0].name} of "
                f"ZeRO-{_stage(states[0])} on {world_size}",
                todo="the folder mixes two checkpoints: get it again",
            )


def _step(states: Mapping[str, Any]) -> float | None:
    """Returns how many steps the optimizer has made, where it counts them."""
    base = states.get("base_optimizer_state", states.get("optimizer_state_dict")) or {}
    per_parameter = base.get("state", {}) if isinstance(base, Mapping) else {}
    found = [part.get("step") for part in per_parameter.values() if isinstance(part, Mapping)]
    counts = [number(step) for step in found if step is not None]
    return max(counts, default=None)


def _check_step(steps: Sequence[float | None], files: Sequence[Path]) -> None:
    for path, step in zip(files, steps, strict=True):
        if step != steps[0]:
            raise CheckpointError(
                f"{path} is of step {step:g}, {files[0].name} of step {steps[0]:g}",
                todo="the folder mixes two checkpoints: take the one before it",
            )


def _missing(folder: Path, kind: str, found: int, world_size: int) -> CheckpointError:
    return CheckpointError(
        f"{folder} holds {found} *_{kind}.pt of {world_size} ranks",
        todo="copy the missing files: each machine wrote those of its own ranks",
    )


def _masters(states: Mapping[str, Any], path: Path) -> list[StoredTensor]:
    groups = states.get("fp32_flat_groups", states.get("single_partition_of_fp32_groups"))
    if not isinstance(groups, list) or not groups:
        raise CheckpointError(f"{path} holds no weights (fp32 groups)", todo="get the file again")
    for index, group in enumerate(groups):
        if not isinstance(group, StoredTensor) or not group.is_contiguous:
            raise CheckpointError(f"{path}: group {index} is no flat tensor")
        if not group.numel:
            raise CheckpointError(
                f"{path}: group {index} is empty, as where weights are offloaded to NVMe",
                todo="save with the optimizer on the GPU or the CPU",
            )
    return groups
