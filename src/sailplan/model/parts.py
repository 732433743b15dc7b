"""The parts of a model by module name: its language model, its vision tower and its projector.

Read from the model itself (transformers' `get_decoder` and `get_output_embeddings`), so that a
family that is new to sailplan is divided right as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

LANGUAGE_MODEL, VISION_TOWER, PROJECTOR = "language_model", "vision_tower", "projector"

# What maps vision features to the language model, beside the tower or, in Qwen, at its end.
_PROJECTOR = re.compile(
    r"projector|projection|connector|aligner|merger|adapter|resampler|qformer|query_tokens"
    r"|image_newline|embed_(vision|audio)|visual_embeddings_table"
)


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
    projector: tuple[str, ...]
    """Those of them that are the projector, or the modules within them that are."""

    def is_vision(self, name: str) -> bool:
        """Tells whether a module or parameter belongs to the vision tower or projector."""
        return _lies_in(name, self.vision)

    def part_of(self, name: str) -> str:
        """Returns `language_model`, `vision_tower` or `projector` for a module or parameter."""
        if _lies_in(name, self.projector):
            return PROJECTOR
        return VISION_TOWER if self.is_vision(name) else LANGUAGE_MODEL


def find_parts(model: PreTrainedModel) -> Parts:
    """Divides `model`, which must not be wrapped by PEFT or a distributed strategy."""
    decoder, head_module = model.get_decoder(), model.get_output_embeddings()
    modules = dict(model.named_modules())
    names = {id(module): name for name, module in modules.items()}
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
        # Such as LLaVA-NeXT's image_newline.
        beside += [".".join([*path[:depth], name]) for name, _ in _own_parameters(parent)]
        parent = getattr(parent, step)
    projector = []
    for root in beside:
        if _PROJECTOR.search(_leaf(root)):
            projector.append(root)
        elif root in modules:
            inside = [name for name, _ in modules[root].named_children() if _PROJECTOR.search(name)]
            projector += [f"{root}.{name}" for name in inside]
    return Parts(language=language, head=head, vision=tuple(beside), projector=tuple(projector))


def base_model(model: Any) -> Any:
    """Returns the model that PEFT wraps, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def parameters_by_part(model: PreTrainedModel | PeftModel) -> dict[str, dict[str, nn.Parameter]]:
    """Returns the parameters of each part that the model has, by name.

    Args:
        model: The model, wrapped by PEFT or not.
    """
    base = base_model(model)
    parts = find_parts(base)
    found: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in base.named_parameters():
        found.setdefault(parts.part_of(name), {})[name] = parameter
    return {
        part: found[part] for part in (VISION_TOWER, PROJECTOR, LANGUAGE_MODEL) if part in found
    }


def _own_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(recurse=False))


def _lies_in(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
