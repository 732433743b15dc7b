"""Writes a ZeRO checkpoint anew so that any number of ranks, of any stage, can load it.

It is DeepSpeed's universal form, as its engine loads it with `checkpoint.load_universal`: a folder
`zero/NAME` a trained parameter, with a file of its weights and one of each state of its optimizer.

DeepSpeed's own tool, `ds_to_universal`, is not what writes it: see docs/decisions/0020.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sailplan.checkpoint.stored import ITEM_BYTES, Pieces, StoredTensor, number
from sailplan.checkpoint.zero import laid_out
from sailplan.checkpoint.zero_states import ZeroStates, load
from sailplan.errors import CheckpointError

ADAMW = frozenset({"exp_avg", "exp_avg_sq"})
"""The states that DeepSpeed's ZeRO-3 loads from the universal form, and no others."""

_WEIGHTS, _STEP = "fp32", "step"
_COMMON = ("loss_scaler", "dynamic_loss_scale", "overflow", "clip_grad")
"""What the optimizer keeps beside its tensors, the same on every rank."""
_MODEL_FILES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
"""Where DeepSpeed looks for what is no tensor of the optimizer, under ZeRO-1 and 2, and under 3."""
_THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Universal:
    """What is to be written, and where it lies now."""

    folder: Path
    """The `global_stepN` folder."""
    states: ZeroStates
    """What its ranks wrote."""
    tensors: Mapping[str, Mapping[str, Pieces]]
    """By the state's name, `fp32` among them, then by the parameter's."""
    step: torch.Tensor | int | None
    """How many steps the optimizer has made, in its own form; None where it does not count."""

    @property
    def num_bytes(self) -> int:
        """The bytes of all tensors."""
        return sum(
            _num_bytes(pieces) for state in self.tensors.values() for pieces in state.values()
        )


def read(folder: Path) -> Universal:
    """Reads where everything lies; no weights.

    Raises:
        CheckpointError: The checkpoint is incomplete, or its optimizer keeps what cannot be divided
            anew.
    """
    states = load(folder)
    groups = [_optimizer(states, rank)["state"] for rank in range(states.world_size)]
    tensors = {_WEIGHTS: laid_out(states, states.masters, folder)}
    for name in _names(groups[0], folder):
        vectors = [
            _vectors(group, masters, name, folder)
            for group, masters in zip(groups, states.masters, strict=True)
        ]
        tensors[name] = laid_out(states, vectors, folder)
    return Universal(folder=folder, states=states, tensors=tensors, step=_step(groups[0], folder))


def write(universal: Universal, target: Path, done: Callable[[int], None]) -> None:
    """Writes the universal form.

    Args:
        universal: What to write.
        target: The folder to make.
        done: Is told of each number of bytes that has been written.

    Raises:
        OSError: It cannot be written.
    """
    zero = target / "zero"
    items: list[tuple[Path, Pieces]] = []
    for state, parameters in universal.tensors.items():
        for name, pieces in parameters.items():
            (zero / name).mkdir(parents=True, exist_ok=True)
            items.append((zero / name / f"{state}.pt", pieces))
    with ThreadPoolExecutor(_THREADS) as pool:
        for num_bytes in pool.map(lambda item: _write_tensor(*item), items):
            done(num_bytes)
    if universal.step is not None:
        for name in universal.tensors[_WEIGHTS]:
            torch.save(universal.step, zero / name / f"{_STEP}.pt")
    torch.save(_common(universal), zero / "optimizer_state.pt")
    there = next(path for name in _MODEL_FILES if (path := universal.folder / name).is_file())
    for name in _MODEL_FILES:
        (target / name).symlink_to(there.absolute())


def check_shares(universal: Universal, ranks: int) -> None:
    """Refuses more ranks than DeepSpeed's ZeRO-1 and 2 load on: each must hold some of every group.

    Raises:
        CheckpointError: A group of parameters is too small for so many.
    """
    for shapes in universal.states.models[0]["param_shapes"]:
        numel = sum(math.prod(shape) for shape in shapes.values())
        share = 2 * -(-numel // (2 * ranks))
        if share * (ranks - 1) >= numel:
            raise CheckpointError(
                f"{universal.folder}: a group of {numel} parameters leaves some of {ranks} ranks "
                "without any, which DeepSpeed does not load",
                todo="go on with fewer ranks, or under zero3",
            )


def hyperparameters(folder: Path) -> list[dict[str, Any]]:
    """Returns the settings of each parameter group, such as its learning rate, from `write`'s."""
    common = torch.load(folder / "zero" / "optimizer_state.pt", weights_only=False)
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in common["param_groups"]
    ]


def _optimizer(states: ZeroStates, rank: int) -> Mapping[str, Any]:
    """Returns the state of the optimizer that DeepSpeed wraps."""
    name = "optimizer_state_dict" if states.stage == 3 else "base_optimizer_state"
    found: Mapping[str, Any] = states.optimizers[rank][name]
    return found


def _step(groups: Mapping[int, Mapping[str, Any]], folder: Path) -> torch.Tensor | int | None:
    found = [state[_STEP] for state in groups.values() if _STEP in state]
    counts = sorted({number(step) for step in found})
    if len(counts) > 1:
        raise CheckpointError(f"{folder}: parts of its optimizer have made {counts} steps")
    if not found:
        return None
    if isinstance(found[0], StoredTensor):
        return torch.tensor(counts[0], dtype=getattr(torch, found[0].dtype))
    return int(counts[0])


def _names(groups: Mapping[int, Mapping[str, Any]], folder: Path) -> list[str]:
    """Returns the names of the states that have a number for each weight."""
    found: dict[str, None] = {}
    for state in groups.values():
        for name, value in state.items():
            if isinstance(value, StoredTensor) and value.shape:
                found[name] = None
            elif not isinstance(value, StoredTensor | int | float | None):
                raise _indivisible(folder, name)
    return list(found)


def _vectors(
    groups: Mapping[int, Mapping[str, Any]],
    masters: Sequence[StoredTensor],
    name: str,
    folder: Path,
) -> list[StoredTensor]:
    """Returns one state of a rank, a vector a group of parameters."""
    found = []
    for index, master in zip(sorted(groups), masters, strict=True):
        vector = groups[index].get(name)
        # Those in 8 bits have one scale for many weights.
        if (
            not isinstance(vector, StoredTensor)
            or len(vector.shape) != 1
            or vector.numel < master.numel
            or vector.dtype not in ("float64", "float32", "bfloat16", "float16")
        ):
            raise _indivisible(folder, name)
        found.append(vector)
    return found


def _indivisible(folder: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: the optimizer's {name} is not one number a weight, and cannot be divided over "
        "other ranks",
        todo="go on with as many ranks as before",
    )


def _common(universal: Universal) -> dict[str, Any]:
    """Returns what every rank loads whole, in the places where ZeRO-1, 2 and 3 look for it."""
    path = universal.states.masters[0][0].file
    # The checkpoint is this run's own; tensors stay in the file.
    saved = torch.load(
        path, map_location="cpu", weights_only=False, mmap=zipfile.is_zipfile(path) or None
    )
    own = saved["optimizer_state_dict"]
    inner = "optimizer_state_dict" if universal.states.stage == 3 else "base_optimizer_state"
    groups = own[inner]["param_groups"]
    return {
        **{name: own[name] for name in _COMMON if name in own},
        "ds_version": saved["ds_version"],
        "param_groups": groups,
        "optimizer_state_dict": {"state": {0: {_STEP: universal.step}}, "param_groups": groups},
    }


def _write_tensor(path: Path, pieces: Pieces) -> int:
    flat = torch.empty(pieces.numel, dtype=getattr(torch, pieces.segments[0].dtype))
    view = flat.view(torch.uint8).numpy().data
    start = 0
    for segment in pieces.segments:
        with segment.file.open("rb", buffering=0) as file:
            file.seek(segment.offset)
            end = start + segment.num_bytes
            while start < end:
                count = file.readinto(view[start:end])
                if not count:
                    raise CheckpointError(f"{segment.file} is truncated", todo="take another")
                start += count
    torch.save({"param": flat.view(pieces.shape)}, path)
    return _num_bytes(pieces)


def _num_bytes(pieces: Pieces) -> int:
    return sum(segment.count * ITEM_BYTES[segment.dtype] for segment in pieces.segments)
