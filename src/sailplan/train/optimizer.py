"""The optimizer of a run in which parts of the model have learning rates of their own."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from sailplan.errors import ModelError, RunFileError
from sailplan.model.parts import LANGUAGE_MODEL, PROJECTOR, VISION_TOWER, parameters_by_part

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.optim import Optimizer
    from transformers import PreTrainedModel
    from trl import SFTConfig

    from sailplan.run.config import Run

_FIELDS = {
    VISION_TOWER: "vision_tower_learning_rate",
    PROJECTOR: "projector_learning_rate",
    LANGUAGE_MODEL: "learning_rate",
}


def highest_rate(optimizer: Any) -> float:
    """Returns the highest learning rate of an optimizer's groups; 0 where nothing moves."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


def learning_rates(run: Run, args: SFTConfig) -> dict[str, float]:
    """Returns the learning rate of each part of a model."""
    rates = {part: run.get(field) for part, field in _FIELDS.items()}
    return {part: args.learning_rate if r is None else r for part, r in rates.items()}


def optimizer_by_part(
    run: Run, args: SFTConfig, trained: Collection[str]
) -> tuple[Any, dict[str, Any]] | None:
    """Returns what `Trainer` takes as `optimizer_cls_and_kwargs`; None where all share one rate.

    Args:
        run: The run.
        args: Its `SFTConfig`.
        trained: The parts in which anything trains.

    Raises:
        ModelError: A part with a rate of its own does not train.
        RunFileError: DeepSpeed's configuration makes an optimizer of its own, or `optim` groups
            the parameters itself.
    """
    from transformers.training_args import OptimizerNames

    own = _own(run)
    if not own:
        return None
    for part in own:
        if part not in trained:
            todo = "drop it, or let that part train: freeze, and lora_vision with LoRA, decide"
            raise ModelError(f"{_FIELDS[part]}: no {part} trains", todo=todo)
    field = _FIELDS[own[0]]
    deepspeed = args.deepspeed_plugin.deepspeed_config if args.deepspeed_plugin else {}
    if "optimizer" in deepspeed:
        got = f"{field} with an optimizer in DeepSpeed's configuration, which knows one rate"
        raise RunFileError(got, todo="take the optimizer out of it; optim chooses one")
    optim = OptimizerNames(args.optim).value
    if any(name in optim for name in ("galore", "apollo", "lomo")):
        got = f"{field} with optim {optim}, which groups the parameters itself"
        raise RunFileError(got, todo="drop one of the two")
    rates = {part: rate for part, rate in learning_rates(run, args).items() if part in own}
    # Trainer calls it, and what it gives with the model, just before the strategy takes both.
    return lambda: functools.partial(_build, args=args, rates=rates), {}


def _own(run: Run) -> list[str]:
    """Returns the parts with a rate of their own."""
    parts = (VISION_TOWER, PROJECTOR)
    return [part for part in parts if run.get(_FIELDS[part]) is not None]


def _build(
    model: PreTrainedModel | PeftModel, *, args: SFTConfig, rates: dict[str, float]
) -> Optimizer:
    """Makes the optimizer of `optim`, as `Trainer.create_optimizer` does, with a rate a part.

    Args:
        model: What trains.
        args: Says which optimizer.
        rates: Parts with a rate of their own; all else learns at `learning_rate`.
    """
    from transformers import Trainer

    optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
    # It reads nothing of a trainer.
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    part_of = {
        id(parameter): part
        for part, parameters in parameters_by_part(model).items()
        for parameter in parameters.values()
    }
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part, decays = part_of[id(parameter)], name in decayed
            settings = {
                "params": [],
                "lr": rates.get(part, args.learning_rate),
                "weight_decay": args.weight_decay if decays else 0.0,
            }
            key = (part if part in rates else "", not decays)
            groups.setdefault(key, settings)["params"].append(parameter)
    # What shares learning_rate comes first: its rate is the one that is logged.
    optimizer: Optimizer = optimizer_class([groups[key] for key in sorted(groups)], **kwargs)
    if kwargs.get("optim_bits") == 8:
        _keep_embeddings_in_32_bits(model)
    return optimizer


def _keep_embeddings_in_32_bits(model: PreTrainedModel | PeftModel) -> None:
    """As Trainer does for bitsandbytes' 8-bit optimizers."""
    from bitsandbytes.optim import GlobalOptimManager
    from torch import nn

    manager = GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
