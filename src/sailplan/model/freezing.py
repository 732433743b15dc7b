"""Freezing parts of a model, so that they cost neither gradients nor saved activations."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sailplan.errors import ModelError
from sailplan.model.parts import (
    VISION_TOWER,
    base_model,
    find_parts,
    parameters_by_part,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

    from sailplan.run.config import Run


def frozen_parts(run: Run, model: PreTrainedModel | PeftModel) -> frozenset[str]:
    """Returns the parts that the run's `freeze` names.

    Raises:
        ModelError: The model has no such part, or nothing would be left to train.
    """
    frozen, parts = frozenset(run.get("freeze") or ()), parameters_by_part(model)
    missing = sorted(frozen - parts.keys())
    if missing:
        raise ModelError(f"freeze: the model has no {missing[0]}", allowed=", ".join(parts))
    if frozen == parts.keys():
        got = f"freeze names all that the model has: {', '.join(parts)}"
        raise ModelError(got, todo="leave out what should train")
    return frozen


def freeze(run: Run, model: PreTrainedModel | PeftModel) -> None:
    """Freezes what `freeze` names, and has vision towers that do not train run without autograd.

    Args:
        run: The run.
        model: The model that trains, wrapped by PEFT where it does.

    Raises:
        ModelError: As for `frozen_parts`.
    """
    parts = parameters_by_part(model)
    for part in frozen_parts(run, model):
        for parameter in parts[part].values():
            parameter.requires_grad_(False)
    run_frozen_vision_without_autograd(model)


def run_frozen_vision_without_autograd(model: PreTrainedModel | PeftModel) -> None:
    """Has a vision tower in which nothing trains save no activation.

    Args:
        model: The model that trains, wrapped by PEFT where it does.
    """
    tower = parameters_by_part(model).get(VISION_TOWER, {})
    if not any(parameter.requires_grad for parameter in tower.values()):
        for module in _frozen_vision(base_model(model)):
            _run_without_autograd(module)


def _frozen_vision(model: PreTrainedModel) -> Iterator[nn.Module]:
    """Yields the largest modules of tower and projector in which nothing trains.

    The tower is frozen, so that nothing before the projector can need a gradient either. Where
    anything in the projector trains, gradients pass through the rest of it.
    """
    from torch import nn

    modules, parts = dict(model.named_modules()), find_parts(model)
    waiting = [root for root in parts.vision if root in modules]
    while waiting:
        name = waiting.pop()
        held = list(modules[name].parameters())
        has_forward = type(modules[name]).forward is not nn.Module.forward  # Lists have none.
        if held and has_forward and not any(parameter.requires_grad for parameter in held):
            yield modules[name]
        elif name not in parts.projector:
            waiting += [f"{name}.{child}" for child, _ in modules[name].named_children()]


def _run_without_autograd(module: nn.Module) -> None:
    """Has the module save no activation, whatever its inputs require.

    `enable_input_require_grads` makes the outputs of every embedding require a gradient, a tower's
    patches too, and so would have a frozen tower kept for a backward pass, or run twice under
    gradient checkpointing.
    """
    import torch

    forward = module.forward
    checkpointed: list[Any] = [
        layer for layer in module.modules() if hasattr(layer, "gradient_checkpointing")
    ]

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        for layer in checkpointed:  # Switched on for the whole model when training begins.
            layer.gradient_checkpointing = False
        with torch.no_grad():
            return forward(*args, **kwargs)

    module.forward = run
