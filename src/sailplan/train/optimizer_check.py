"""Tries `optim` and `lr_scheduler_type` on a small layer before a model is loaded.

transformers finds out that a package is missing, or an argument wrong, when the model is already
in memory, and passes over arguments of `optim_args` that the optimizer does not read.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sailplan.errors import RunFileError

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from trl import SFTConfig

_ADEMAMIX = ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3")
OPTIM_ARGS: Mapping[str, tuple[str, ...]] = {
    "sgd": ("momentum", "dampening", "nesterov"),
    "adagrad": ("lr_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
    "ademamix": _ADEMAMIX,
    "ademamix_8bit": _ADEMAMIX,
    "paged_ademamix_32bit": _ADEMAMIX,
    "paged_ademamix_8bit": _ADEMAMIX,
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adafactor"), ()),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit"), ()),
    **dict.fromkeys(("paged_adamw_8bit", "lion_32bit", "lion_8bit", "paged_lion_32bit"), ()),
    **dict.fromkeys(("paged_lion_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit"), ()),
    "rmsprop_bnb_32bit": (),
}
"""What transformers reads of `optim_args`, of the optimizers that need no package of their own.
`weight_decay` is a field of its own, and wins."""

_OFFLOADED = ("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit")
"""What ZeRO-Offload's own optimizer on the CPU is equal to. It takes the place of any other too."""

_LAYER = (320, 320)
"""100,000 weights and more are paged by bitsandbytes, and kept in 8 bits."""
_NUM_STEPS = 1000


def check_optimizer(args: SFTConfig) -> None:
    """Takes two steps with the optimizer and the schedule of the run.

    Raises:
        RunFileError: A package is missing, an argument is wrong or unknown, or the optimizer does
            not run on this machine or under DeepSpeed.
    """
    from transformers.training_args import OptimizerNames

    name = str(OptimizerNames(args.optim).value)
    written = _parse(name, args.optim_args)
    if args.deepspeed_plugin is not None:
        _check_deepspeed(name, args.deepspeed_plugin.deepspeed_config)
    try:
        optimizer = _two_steps(args)
    except Exception as error:
        with_args = f" with optim_args {args.optim_args}" if written else ""
        raise RunFileError(f"optim {name}{with_args}: {error}") from error
    _check_schedule(args, optimizer)


def _parse(name: str, optim_args: str | None) -> list[str]:
    """Returns the names in `optim_args`, which must be such as the optimizer reads."""
    written = []
    for setting in (optim_args or "").replace(" ", "").split(",") if optim_args else ():
        key, equals, value = setting.partition("=")
        if not (key and equals and value) or "=" in value:
            raise RunFileError(f"optim_args {optim_args!r}", allowed="name=value,name=value")
        written.append(key)
    reads = OPTIM_ARGS.get(name)
    unknown = [key for key in written if reads is not None and key not in reads]
    if unknown:
        allowed = ", ".join(reads or ()) or f"none, {name} takes no arguments"
        raise RunFileError(f"optim_args: optim {name} has no {unknown[0]}", allowed=allowed)
    return written


def _check_deepspeed(name: str, config: Mapping[str, Any]) -> None:
    """Refuses what ZeRO breaks, or replaces in silence, seen with deepspeed 0.19."""
    zero = config.get("zero_optimization", {})
    offload = (zero.get("offload_optimizer") or {}).get("device", "none")
    if "optimizer" in config or not zero.get("stage"):
        return
    if offload != "none" and name not in _OFFLOADED:
        got = f"optim {name} with ZeRO-Offload, which would train with its own AdamW instead"
        raise RunFileError(got, allowed=", ".join(_OFFLOADED))
    if name == "adagrad":
        got = "optim adagrad under DeepSpeed, which leaves it without parameters when it is made"
        raise RunFileError(got, todo="choose another optimizer, or ddp")
    if name.startswith(("galore", "apollo")):
        got = f"optim {name} under DeepSpeed, which hands it flat pieces of weights, not matrices"
        raise RunFileError(got, todo="choose another optimizer, or ddp")


def _two_steps(args: SFTConfig) -> Optimizer:
    """Trains a small layer for two steps, and returns its optimizer."""
    import torch
    from transformers import Trainer

    # Made without random numbers: the run's own are to be the same as without this trial.
    layer = torch.nn.Linear(*_LAYER, device="meta").to_empty(device=args.device)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.ones_(layer.bias)
    model = torch.nn.Sequential(layer)
    args = copy.copy(args)
    if args.optim_target_modules:  # They are names of the run's model.
        args.optim_target_modules = "all-linear"
    optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
    for special in ("model", "optimizer_dict"):
        if special in kwargs:  # It steps within the backward pass.
            stepless: Optimizer = optimizer_class(kwargs.pop(special), **kwargs)
            return stepless
    optimizer: Optimizer = optimizer_class(kwargs.pop("params", model.parameters()), **kwargs)
    for _ in range(2):
        model(torch.ones(1, _LAYER[0], device=args.device)).sum().backward()
        optimizer.step()
    return optimizer


def _check_schedule(args: SFTConfig, optimizer: Optimizer) -> None:
    """Makes the learning-rate schedule, and asks it for its first rates."""
    from torch.optim.lr_scheduler import LambdaLR
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType, get_scheduler

    kind = SchedulerType(args.lr_scheduler_type)
    settings: dict[str, Any] = dict(args.lr_scheduler_kwargs or {})
    takes = _scheduler_settings(TYPE_TO_SCHEDULER_FUNCTION[kind])
    unknown = [] if takes is None else [name for name in settings if name not in takes]
    if unknown:
        got = f"lr_scheduler_kwargs: lr_scheduler_type {kind.value} has no {unknown[0]}"
        raise RunFileError(got, allowed=", ".join(takes or ()) or "none")
    try:
        schedule = get_scheduler(
            kind,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=_NUM_STEPS,
            scheduler_specific_kwargs=settings,
        )
        if isinstance(schedule, LambdaLR):
            for step in range(3):
                schedule.lr_lambdas[0](step)
    except Exception as error:
        wrote = f" with lr_scheduler_kwargs {settings}" if settings else ""
        raise RunFileError(f"lr_scheduler_type {kind.value}{wrote}: {error}") from error


def _scheduler_settings(function: Any) -> list[str] | None:
    """Returns the names that `lr_scheduler_kwargs` may have; None where any can be."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    given = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    return [name for name in parameters if name not in given]
