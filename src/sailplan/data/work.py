"""What a token and an image cost a model, for dealing samples into rows of equal work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from sailplan.data.balance import Work
from sailplan.data.media import process_images
from sailplan.model.families import Family
from sailplan.model.parts import LANGUAGE_MODEL, base_model, parameters_by_part

_PROBE = Image.new("RGB", (448, 448))


def work_of(model: Any, processor: Any, family: Family) -> Work:
    """Estimates the work of a model's samples from its parameters.

    Each token passes every parameter of the language model, each patch those of the vision tower:
    once forward, once backward where anything before it trains, and once more where it trains
    itself. Causal attention adds `2 · hidden_size` operations a token and token before it to the
    `24 · hidden_size²` of a layer's matrices.

    Args:
        model: The model, wrapped by PEFT or not, in shards or not.
        processor: Its processor, or its tokenizer for a text-only model.
        family: Its family.
    """
    return work_from(
        {
            part: (
                sum(_count(one) for one in parameters.values() if not one.requires_grad),
                sum(_count(one) for one in parameters.values() if one.requires_grad),
            )
            for part, parameters in parameters_by_part(model).items()
        },
        hidden_size=base_model(model).config.get_text_config().hidden_size,
        patches_per_token=patches_per_token(processor, family) if family.is_vision else 0.0,
    )


def work_from(
    weights: Mapping[str, tuple[int, int]], *, hidden_size: int, patches_per_token: float
) -> Work:
    """Estimates the work of samples from the number of weights.

    Args:
        weights: For each part of the model those that do not train, and those that do.
        hidden_size: Of the language model.
        patches_per_token: What the vision tower sees for each image token.
    """
    operations = {
        part: frozen * (2 if trained or part == LANGUAGE_MODEL else 1) + trained * 3
        for part, (frozen, trained) in weights.items()
    }
    language = operations.pop(LANGUAGE_MODEL)
    per_patch = sum(operations.values()) / language
    return Work(attention=1 / (12 * hidden_size), image_token=patches_per_token * per_patch)


def _count(parameter: Any) -> int:
    packed = getattr(parameter, "quant_state", None)
    if packed is not None:
        return int(packed.shape.numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # ZeRO-3 leaves it empty


def patches_per_token(processor: Any, family: Family) -> float:
    """Returns how many patches the vision tower sees for each image token."""
    inputs, (text,) = process_images(processor, [[_PROBE]], nested=family.nested_images)
    pixels = inputs["pixel_values"]
    if pixels.ndim == 2:  # patches in rows, as Qwen has them
        patches = len(pixels)
    else:
        side = getattr(processor, "patch_size", None) or processor.image_processor.to_dict().get(
            "patch_size", 14
        )
        side = side if isinstance(side, int) else side["height"]
        patches = pixels[..., 0, :, :].numel() / side**2
    return float(patches) / max(1, text.count(family.image_token(processor) or ""))
