"""The floating point operations that training needs, from the model's own parameters.

What is counted is what the mathematics asks for, as for every model FLOPs utilisation: no padding,
and nothing that checkpointing computes again. A weight takes two operations a token forward, two
for the gradient of what came in, and two for its own gradient; a frozen weight needs not the last,
and one that no trained weight lies before not the second. Attention between text tokens counts
causally. Attention inside vision towers, and what neither is (norms, convolutions of states), is
left out, so that the result is a little low.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sailplan.model.parts import (
    LANGUAGE_MODEL,
    PROJECTOR,
    VISION_TOWER,
    base_model,
    find_parts,
    parameters_by_part,
)
from sailplan.model.trainable import num_weights

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFlops:
    """Operations of forward and backward, each a unit of what batches are counted in."""

    token: float
    """Of each token, in the decoder's weights."""
    trained: float
    """Of each trained token, in the head: no other token's logits are needed."""
    square: float
    """Of each token pair, both ways, in the decoder's attention."""
    image_token: float
    """Of each image token, in the projector."""
    pixel: float
    """Of each number in `pixel_values`, in the vision tower."""

    def of(self, counts: Mapping[str, float]) -> float:
        """Returns the operations that some batches need.

        Args:
            counts: Fields of `BatchCounts`, added up.
        """
        return (
            self.token * counts["tokens"]
            + self.trained * counts["trained"]
            + self.square * counts["squares"]
            + self.image_token * counts["image_tokens"]
            + self.pixel * counts["pixels"]
        )


def model_flops(model: Any) -> ModelFlops:
    """Counts the weights of a model that is about to train, wrapped by PEFT or not."""
    base = base_model(model)
    text = base.config.get_text_config()
    experts = next((getattr(text, name, 0) for name in _EXPERTS if getattr(text, name, 0)), 1)
    share = (getattr(text, "num_experts_per_tok", None) or experts) / experts
    found = parameters_by_part(model)
    decoder, head = _decoder_and_head(base, found.get(LANGUAGE_MODEL, {}))
    vision, projector = found.get(VISION_TOWER, {}), found.get(PROJECTOR, {})
    before_projector = _trains(vision)
    before_decoder = before_projector or _trains(projector)
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelFlops(
        token=_of_weights(decoder, before=before_decoder, expert_share=share),
        trained=_of_weights(head, before=before_decoder or _trains(decoder)),
        # Forward 2·T²·width a head, half of the two products being masked; backward twice that.
        square=6.0 * text.num_hidden_layers * text.num_attention_heads * width,
        image_token=_of_weights(projector, before=before_projector),
        pixel=_of_weights(vision, before=False) / _pixels_of_a_patch(base.config),
    )


def _decoder_and_head(
    base: PreTrainedModel, language: Mapping[str, nn.Parameter]
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Returns the parameters that every token passes through, and those for trained ones alone."""
    parts = find_parts(base)
    # Looking a token up takes no operations; where the table is the head too, it works there.
    tables = {id(table) for table in base.get_input_embeddings().parameters()}
    in_head = {name: weight for name, weight in language.items() if _below(name, parts.head)}
    head_module = base.get_output_embeddings()
    if head_module is not None and not in_head:
        in_head = dict(head_module.named_parameters())
    decoder = {
        name: weight
        for name, weight in language.items()
        if name not in in_head and id(weight) not in tables
    }
    return decoder, in_head


def _below(name: str, root: str | None) -> bool:
    return root is not None and name.startswith(f"{root}.")


def _trains(parameters: Mapping[str, nn.Parameter]) -> bool:
    return any(weight.requires_grad for weight in parameters.values())


def _of_weights(
    parameters: Mapping[str, nn.Parameter], *, before: bool, expert_share: float = 1.0
) -> float:
    """Returns the operations of a token in some weights.

    Args:
        parameters: The weights, by name.
        before: Whether anything trains before them, so that gradients must pass through.
        expert_share: The part of a layer's experts that a token goes through.
    """
    passes = 4 if before or _trains(parameters) else 2
    flops = 0.0
    for name, weight in parameters.items():
        if ".original_module." in name:  # PEFT's copy beside it is at work
            continue
        used = num_weights(weight) * (expert_share if ".experts." in name else 1.0)
        flops += used * (passes + 2 * weight.requires_grad)
    return flops


def _pixels_of_a_patch(config: Any) -> float:
    """Returns how many numbers of `pixel_values` become one token of the vision tower."""
    vision = getattr(config, "vision_config", None)
    size = getattr(vision, "patch_size", None)
    if size is None:
        return math.inf
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = getattr(vision, "in_channels", None) or getattr(vision, "num_channels", None) or 3
    return float(height * width * channels * (getattr(vision, "temporal_patch_size", None) or 1))
