"""Compares what two checkpoints hold, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Returns every tensor of weights and of optimizer states, and the schedule's numbers."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.rglob("*")):
        name = file.relative_to(checkpoint).as_posix()
        # DeepSpeed names a folder by the step.
        name = "/".join(part for part in name.split("/") if not part.startswith("global_step"))
        if file.suffix == ".safetensors":
            found |= {f"{name}: {key}": tensor for key, tensor in load_file(file).items()}
        elif file.name in ("optimizer.pt", "scheduler.pt"):
            found |= dict(_flat(name, torch.load(file, map_location="cpu")))
        elif file.name.endswith("_states.pt"):
            # Of DeepSpeed's; what it counts goes on with a step that it leaves out.
            stored = torch.load(file, weights_only=False, map_location="cpu")
            for part in ("module", "optimizer_state_dict", "lr_scheduler"):
                found |= dict(_flat(f"{name}: {part}", stored.get(part)))
    return found


def _flat(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, bool | int | float):
        if not name.endswith("overflow"):
            yield name, torch.tensor(value)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str | int):
                yield from _flat(f"{name}.{item[0]}", item[1])
            else:
                yield from _flat(f"{name}.{index}", item)


def differing(one: Path, other: Path) -> list[str]:
    """Returns the names of what differs between two checkpoints, in a bit or by its absence."""
    first, second = tensors_of(one), tensors_of(other)
    return sorted(
        name
        for name in {*first, *second}
        if name not in first
        or name not in second
        or not torch.equal(first[name], second[name])
        or first[name].dtype != second[name].dtype
    )
