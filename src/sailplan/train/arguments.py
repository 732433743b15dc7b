"""The `SFTConfig` of a run: the user's values, and the few that our own data path sets.

sailplan hands TRL's trainer tokenised rows, labels and a collator. What TRL would do to the data
itself (truncate, mask, pack) is therefore switched off here, whatever the run file says of it;
`sailplan.data` has already done it by the same fields.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sailplan.errors import RunFileError
from sailplan.hub.access import check_push
from sailplan.model.precision import find_device, fit_to_device
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.run.quantised import precision_of, refuse_undivided
from sailplan.train.evaluation import evaluation_arguments
from sailplan.train.guards.hang.beats import FIRST_STEP
from sailplan.train.optimizer_check import check_optimizer

if TYPE_CHECKING:
    from trl import SFTConfig

_OURS: dict[str, Any] = {
    "remove_unused_columns": False,
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "assistant_only_loss": False,
    "completion_only_loss": False,
    "max_length": None,
    "packing": False,
    "padding_free": False,
    # The model, its processor and what is special about them are loaded by `sailplan.model`.
    "model_init_kwargs": None,
    "chat_template_path": None,
    # Which checkpoint it is, the run directory says.
    "resume_from_checkpoint": None,
    # Trainer deletes the older before the newer is whole.
    "save_total_limit": None,
}

_TELLING_S = 60
"""What a rank that finds a hang may take to tell of it."""

_IDLE = {
    "eval_packing": "does nothing here; held-out rows share rows where those of training do",
    "truncation_mode": "does nothing here; over_length says what becomes of long samples",
    "shuffle_dataset": "does nothing here; the samples are drawn in random order anyway",
}
"""What TRL would do to the data, and sailplan does not do when it is written."""


def training_arguments(run: Run) -> tuple[SFTConfig, list[str]]:
    """Makes the `SFTConfig` of this rank, with notes on what was switched off and why.

    Raises:
        RunFileError: TRL or transformers refuse a value, or a package is not installed.
    """
    from transformers.utils import is_liger_kernel_available
    from trl import SFTConfig

    device = find_device(use_cpu=bool(run.get("use_cpu")))
    defaults: dict[str, Any] = {
        "report_to": "tensorboard",
        "disable_tqdm": not sys.stderr.isatty(),
        "restore_callback_states_from_checkpoint": True,
    }
    if device.kind == "cuda" and run.get("dataloader_pin_memory"):
        # Else each batch would wait for all that the GPU has still to do.
        defaults["accelerator_config"] = {"non_blocking": True}
    if run.get("gradient_checkpointing"):
        defaults |= without_search(run.get("gradient_checkpointing_kwargs"))
    unset = {name: value for name, value in defaults.items() if not run.is_set(name)}
    fitted, notes = fit_to_device(run, device)
    notes += [f"{name}: {why}" for name, why in _IDLE.items() if run.is_set(name) and run.get(name)]
    collective_s, why = collective_timeout(run.get("ddp_timeout"), run.get("hang_timeout"))
    notes += why if run.is_set("ddp_timeout") else []
    ours = {**_OURS, "output_dir": str(RunDirectory.of(run).path), "ddp_timeout": collective_s}
    args = run.arguments(SFTConfig, **{**unset, **fitted, **ours, **evaluation_arguments(run)})
    _check_trackers(args.report_to)
    precision = precision_of(bf16=args.bf16, fp16=args.fp16)
    refuse_undivided(run, _strategy_of(args), precision=precision)
    check_optimizer(args)
    if args.push_to_hub and args.process_index == 0:
        check_push()
    if args.use_liger_kernel and not is_liger_kernel_available():
        got = "use_liger_kernel without the package"
        raise RunFileError(got, todo="drop it, or pip install liger-kernel")
    return args, notes


def collective_timeout(ddp_timeout_s: int, hang_timeout_s: float) -> tuple[int, list[str]]:
    """Returns how long a collective may take, and why where that is not what was asked for.

    It must outlast the watch over hangs, which can say what has happened.

    Args:
        ddp_timeout_s: The run's `ddp_timeout`.
        hang_timeout_s: Its `hang_timeout`; 0 where nothing watches.
    """
    least = math.ceil(FIRST_STEP * hang_timeout_s + _TELLING_S)
    if not hang_timeout_s or ddp_timeout_s >= least:
        return ddp_timeout_s, []
    why = f"ddp_timeout: {least} s, so that hang_timeout ({hang_timeout_s:g} s) comes before it"
    return least, [why]


def without_search(checkpointing: Mapping[str, Any] | None) -> dict[str, bool]:
    """Returns what DDP needs under reentrant checkpointing: no search for unused parameters.

    It marks a parameter ready twice there, and fails. transformers leaves the search on for a model
    that PEFT wraps. None are unused: a batch without images has a dummy where they would be.

    Args:
        checkpointing: The run's `gradient_checkpointing_kwargs`.
    """
    reentrant = (checkpointing or {}).get("use_reentrant")
    return {"ddp_find_unused_parameters": False} if reentrant else {}


def _strategy_of(args: SFTConfig) -> str:
    """Returns what shards the weights under these arguments, as the run file names it."""
    if args.deepspeed_plugin is not None:
        return f"zero{args.deepspeed_plugin.zero_stage}"
    if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return "fsdp2"
    return "ddp" if args.world_size > 1 else "single"


def _check_trackers(names: Iterable[str]) -> None:
    """Refuses trackers that transformers would refuse, when it has already loaded the model."""
    from transformers.integrations import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    # transformers does not list these two even where they can be used.
    usable = {*get_available_reporting_integrations(), "azure_ml", "flyte"}
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            allowed = f"none, all, {', '.join(INTEGRATION_TO_CALLBACK)}"
            raise RunFileError(f"report_to is {name!r}", allowed=allowed)
        if name not in usable:
            raise RunFileError(f"report_to is {name}, which is not installed", todo="install it")
