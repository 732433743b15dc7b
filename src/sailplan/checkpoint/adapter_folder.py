"""Reads the folder of an adapter as PEFT saves it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailplan.checkpoint import dcp, hub_folder, zero_states
from sailplan.checkpoint.stored import Pieces
from sailplan.errors import CheckpointError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterFolder:
    """An adapter: its settings, and where its tensors lie."""

    folder: Path
    """The folder."""
    config: Mapping[str, Any]
    """PEFT's settings."""
    tensors: Mapping[str, Pieces]
    """Its tensors by the names that PEFT saves, such as
    `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`."""


def is_adapter(folder: Path) -> bool:
    """Says whether a folder holds an adapter's settings and weights, and no model of its own."""
    return (
        (folder / CONFIG).is_file()
        and any((folder / name).is_file() for name in WEIGHTS)
        and not hub_folder.is_model(folder)
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Returns an adapter's settings.

    Raises:
        CheckpointError: They are missing or broken.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error})", todo=f"copy the run's {CONFIG} there"
        ) from error
    return config


def read(folder: Path) -> AdapterFolder:
    """Returns an adapter; no weights, and no code of a pickle.

    Raises:
        CheckpointError: A file is missing or broken, or its tensors are empty, as ZeRO-3 has left
            them in some versions of the libraries.
    """
    config = read_config(folder)
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} has no {WEIGHTS[0]}")
    try:
        stored = hub_folder.tensors_of(path)
    except CheckpointError as error:
        raise CheckpointError(error.got, todo=_remedy(folder) or error.todo) from error
    empty = sorted(name for name, tensor in stored.items() if not tensor.numel)
    if empty or not stored:
        what = f"{len(empty)} empty tensors, such as {empty[0]}" if empty else "no tensors"
        raise CheckpointError(
            f"{path} of {path.stat().st_size} bytes holds {what}",
            todo=_remedy(folder) or "the weights were not gathered when it was saved: train again",
        )
    try:
        tensors = {name: tensor.pieces() for name, tensor in stored.items()}
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}", todo="save it with safetensors") from error
    return AdapterFolder(folder=folder, config=config, tensors=tensors)


def _remedy(folder: Path) -> str:
    """Says how the weights can be had where the sharded state is still there."""
    beside = [entry for home in (folder, folder.parent) for entry in sorted(home.glob("*"))]
    sharded = [
        entry
        for entry in beside
        if (entry.name.startswith("global_step") and zero_states.is_zero(entry))
        or (entry.name.startswith("pytorch_model_fsdp") and dcp.is_dcp(entry))
    ]
    if sharded:
        return f"the weights are in {sharded[0].name}: sailplan recover-adapter {folder}"
    return ""
