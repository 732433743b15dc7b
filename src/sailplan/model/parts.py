"""The parts of a model by module name: its language model, its head, and all that sees images.

Read from the model itself (transformers' `get_decoder` and `get_output_embeddings`), so that a
family that is new to sailplan is divided right as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Qualified module names, without a trailing dot."""

    language: str
    """The decoder, `model.language_model`; the whole model where it has no such part."""
    head: str | None
    """The output embedding, `lm_head`."""
    vision: tuple[str, ...]
    """Everything beside them, such as `model.visual` or `model.vision_tower` and
    `model.multi_modal_projector`; empty for a text model."""

    def is_vision(self, name: str) -> bool:
        """Tells whether a module or parameter belongs to the vision tower or projector."""
        return any(name == root or name.startswith(f"{root}.") for root in self.vision)


def find_parts(model: PreTrainedModel) -> Parts:
    """Divides `model`, which must not be wrapped by PEFT or a distributed strategy."""
    decoder, head_module = model.get_decoder(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    language, head = names.get(id(decoder), ""), names.get(id(head_module))
    beside = []
    parent: nn.Module = model
    path = language.split(".") if language else []
    for depth, step in enumerate(path):
        for name, child in parent.named_children():
            qualified = ".".join([*path[:depth], name])
            holds_weights = next(child.parameters(), None) is not None
            if name != step and child is not head_module and holds_weights:
                beside.append(qualified)
        parent = getattr(parent, step)
    return Parts(language=language, head=head, vision=tuple(beside))
