"""What a run leaves: a model or adapter that loads as it is, or shards and how to merge them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import psutil
import torch

from sailplan.errors import CheckpointError, TrainingError
from sailplan.run.paths import RunPaths
from sailplan.train.saving.weights import (
    ADAPTER,
    check_model_names,
    check_values,
    saved_weights,
)

HOST_SHARE = 0.8
"""The part of the available host memory that a gathered model may take."""


def gather_where_it_fits(engine: Any, is_adapter: bool, *, sharded: bool = False) -> None:
    """Lets ZeRO-3 gather the weights on saving only where the first rank's host can hold them.

    Args:
        engine: DeepSpeed's engine; of another stage than 3 nothing has to be gathered.
        is_adapter: Only an adapter is saved, which always fits.
        sharded: The run asks for shards alone.
    """
    settings = engine._config.zero_config
    if engine.zero_optimization_stage() != 3 or is_adapter:
        return
    if sharded:
        settings.gather_16bit_weights_on_model_save = False
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
        tensors = saved_weights(folder)
        if tensors is None:
            return _sharded(folder)
        check_values(tensors)
        if (folder / ADAPTER).is_file():
            return f"saved the adapter to {folder}"
        check_model_names(folder)
    except CheckpointError as error:
        raise TrainingError(f"what was saved is broken: {error}") from error
    return f"saved the model to {folder}"


def _sharded(folder: Path) -> str:
    """Says how the shards become a model, where no rank was to hold the whole."""
    if not (folder / "zero_to_fp32.py").is_file():
        raise CheckpointError(f"{folder} holds no weights")
    merge = shlex.join(["sailplan", "merge", str(folder), "--output", str(RunPaths(folder).merged)])
    return (
        f"saved in shards to {folder}, since the host has no room for the whole model or "
        f"save_sharded is set; merge them, which takes little memory: {merge}"
    )
