"""What reentrant gradient checkpointing needs in a vision tower that adapters train in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sailplan.model.parts import base_model, find_parts

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def open_vision_to_gradients(model: PreTrainedModel | PeftModel) -> None:
    """Has the checkpointed layers of a vision tower that trains see an input that needs a gradient.

    Reentrant checkpointing gives a layer's weights gradients only where an input of it requires
    one. transformers' `enable_input_require_grads` sees to that at embeddings; it finds those of
    language models, and of the towers that name theirs (not of Qwen3-VL's or GLM-4V's).

    Args:
        model: The model that trains, wrapped by PEFT where it does.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    base = base_model(model)
    parts = find_parts(base)
    for name, layer in base.named_modules():
        if isinstance(layer, GradientCheckpointingLayer) and parts.is_vision(name):
            layer.register_forward_pre_hook(_require_gradient)


def _require_gradient(_layer: Any, args: tuple[Any, ...]) -> None:
    import torch

    # The first layer's alone lack it; a frozen tower runs without autograd, and stays as it is.
    if args and torch.is_grad_enabled() and not args[0].requires_grad:
        args[0].requires_grad_(True)
