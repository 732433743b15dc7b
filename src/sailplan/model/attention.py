"""Which attention implementation a model runs with, and why."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from sailplan.errors import RunFileError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sailplan.model.families import Family
    from sailplan.model.precision import Device

FLASH = "flash_attention_2"
_CAUSAL = "its images are seen in both directions, for which flash-attention has no mask"


def choose_attention(
    requested: str | None,
    *,
    model_class: type[PreTrainedModel],
    device: Device,
    half_precision: bool,
    family: Family,
) -> tuple[str, str]:
    """Returns the implementation and the reason for it; the caller prints both.

    Args:
        requested: The run's `attn_implementation`; `auto` and None leave the choice to us,
            anything else is taken as it is.
        model_class: The model's class, which says what its layers support.
        device: Where it will train.
        half_precision: Whether attention will see bf16 or fp16, by the weights' dtype or by
            mixed precision; flash-attention takes nothing else.
        family: Its family.

    Raises:
        RunFileError: Flash-attention is written for a family that it would compute wrongly.
    """
    if requested not in (None, "auto"):
        check_masks(str(requested), family.name, both_ways=family.sees_both_ways)
        return str(requested), "written in the run file"
    missing = _flash_obstacle(model_class, device, half_precision)
    if family.sees_both_ways:
        missing = _CAUSAL
    if missing is None:
        return FLASH, f"flash-attn is installed and {device.name} runs it"
    if model_class._supports_sdpa:
        return "sdpa", f"no flash-attention: {missing}"
    return "eager", f"no flash-attention: {missing}; the model does not support sdpa either"


def check_masks(requested: str, name: str, *, both_ways: bool) -> None:
    """Refuses an implementation that would drop what the family needs of its masks.

    transformers drops it without a word (5.23, `flash_attention_mask`).

    Args:
        requested: The run's `attn_implementation`.
        name: The family's name.
        both_ways: Whether some of its tokens attend to later ones.

    Raises:
        RunFileError: They do, and it is flash-attention.
    """
    if both_ways and requested.startswith("flash"):
        raise RunFileError(
            f"attn_implementation {requested} for {name}: {_CAUSAL}",
            allowed="sdpa, eager, or auto",
        )


def _flash_obstacle(
    model_class: type[PreTrainedModel], device: Device, half_precision: bool
) -> str | None:
    """Returns what stands in the way of flash-attention, None where nothing does."""
    if device.kind != "cuda":
        return f"it needs a GPU, and this run trains on {device.name}"
    if not device.bf16:  # Ampere, compute capability 8.0, is what both of them begin with.
        return f"{device.name} is older than Ampere"
    if not half_precision:
        return "it needs bf16 or fp16, and this run trains in fp32"
    if not model_class._supports_flash_attn:
        return f"{model_class.__name__} does not support it"
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed (pip install 'sailplan[flash]')"
    return None
