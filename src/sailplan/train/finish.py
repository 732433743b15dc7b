"""What a run leaves: a model or adapter that loads as it is, or shards and how to merge them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open

from sailplan.checkpoint import hub_folder
from sailplan.checkpoint.stored import StoredTensor
from sailplan.errors import CheckpointError, TrainingError

HOST_SHARE = 0.8
"""The part of the available host memory that a gathered model may take."""

_ADAPTER = "adapter_model.safetensors"


def gather_where_it_fits(engine: Any, is_adapter: bool) -> None:
    """Lets ZeRO-3 gather the weights on saving only where the first rank's host can hold them.

    Args:
        engine: DeepSpeed's engine; of another stage than 3 nothing has to be gathered.
        is_adapter: Only an adapter is saved, which always fits.
    """
    settings = engine._config.zero_config
    if engine.zero_optimization_stage() != 3 or is_adapter:
        return
    num_bytes = sum(2 * parameter.ds_numel for parameter in engine.module.parameters())
    fits = torch.tensor(
        [num_bytes <= HOST_SHARE * psutil.virtual_memory().available],
        dtype=torch.int32,
        device=engine.device,
    )
    torch.distributed.broadcast(fits, src=0)
    settings.gather_16bit_weights_on_model_save &= bool(fits.item())


def check_saved(folder: Path) -> str:
    """Looks at what was saved, and says in one line what it is.

    Args:
        folder: The run's directory.

    Raises:
        TrainingError: The weights are incomplete, empty or not finite.
    """
    try:
        if (folder / _ADAPTER).is_file():
            _check_values(hub_folder.tensors_of(folder / _ADAPTER))
            return f"saved the adapter to {folder}"
        if not hub_folder.is_model(folder):
            return _sharded(folder)
        _check_values(hub_folder.read(folder))
        _check_names(folder)
    except CheckpointError as error:
        raise TrainingError(f"what was saved is broken: {error}") from error
    return f"saved the model to {folder}"


def _sharded(folder: Path) -> str:
    """Says how the shards become a model, where the host had no room for the whole."""
    if not (folder / "zero_to_fp32.py").is_file():
        raise CheckpointError(f"{folder} holds no weights")
    merge = shlex.join(["sailplan", "merge", str(folder), "--output", str(folder / "merged")])
    return (
        f"saved in shards to {folder}, since the host has no room for the whole model; merge them, "
        f"which takes little memory: {merge}"
    )


def _check_values(stored: Mapping[str, StoredTensor]) -> None:
    """Refuses tensors that are empty or not finite."""
    empty = sorted(name for name, tensor in stored.items() if tensor.numel == 0)
    if empty or not stored:
        raise CheckpointError(f"{len(empty)} tensors are empty, such as {(empty or ['all'])[0]}")
    for file in sorted({tensor.file for tensor in stored.values()}):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  it is no mapping
                tensor = weights.get_tensor(name)
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    raise CheckpointError(f"{name} in {file} is not finite")


def _check_names(folder: Path) -> None:
    """Refuses a model that lacks tensors or has foreign ones, by loading it without weights."""
    import transformers
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # Training is over: this model is not loaded in shards.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = getattr(transformers, (config.get("architectures") or [""])[0], None)
    if architecture is None:  # remote code: its class is not known here
        return
    load = architecture.from_pretrained
    try:
        _, info = load(folder, device_map="meta", output_loading_info=True)
    except RuntimeError as error:  # of shapes, which transformers lists above
        raise CheckpointError(f"{folder} does not load: {error}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            names = sorted(map(str, info[kind]))
            raise CheckpointError(f"{folder}: {len(names)} {kind}, such as {names[0]}")
