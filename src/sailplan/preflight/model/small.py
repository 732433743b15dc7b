"""A small copy of a model: its own classes, processor and vision tower, few narrow text layers.

Only the shapes are copied; the weights are drawn. What a family does with tokens, positions and
names shows in it as it does in the model, at a hundredth of the size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_BYTES = 8 * 1000**3
"""What a copy may take in float32; a vision tower alone has a few."""

_LAYERS = ("num_hidden_layers", "depth", "n_layer")
_WIDTHS = ("hidden_size", "out_hidden_size", "text_hidden_size", "projection_dim")
"""Settings outside of the language model that may stand for its width."""
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4}
_EXPERT_WIDTHS = ("moe_intermediate_size", "shared_expert_intermediate_size")
_NAMED_LAYERS = ("indexes", "indices", "vision_feature_layer", "feature_layers")
"""Parts of names of settings that name layers of a vision tower by their numbers."""


def small_config(config: Any) -> Any:
    """Returns a model's config with fewer and narrower text layers, and a less deep vision tower.

    Args:
        config: The model's own; left as it is.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    width = text.hidden_size
    _shorten(text, _least_layers(text))
    _narrow(text)
    for part in _parts(config):
        if part is text:
            continue
        for name in _WIDTHS:
            if getattr(part, name, None) == width and not _is_own_width(name, part, config):
                setattr(part, name, text.hidden_size)
    vision = getattr(config, "vision_config", None)
    if vision is not None and not _names_layers(config):
        _shorten(vision, 3)
    return config


def write_small(config: Any, processor: Any, auto_class: Any, folder: Path) -> Any:
    """Writes a small copy with drawn weights, and returns it.

    Args:
        config: Its config, of `small_config`.
        processor: The model's processor or tokenizer.
        auto_class: What makes the model of the config.
        folder: Where to.

    Returns:
        The model.
    """
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto_class.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def _parts(config: Any) -> Iterator[Any]:
    """Yields a config and those within it."""
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is not None:
            yield from _parts(part)


def _is_own_width(name: str, part: Any, config: Any) -> bool:
    """Says whether a setting is a vision tower's own width, which may be that of the text.

    Qwen2-VL's own is `embed_dim`, and its `hidden_size` what it gives to the text.
    """
    return name == "hidden_size" and part is not config and not hasattr(part, "embed_dim")


def _names_layers(config: Any) -> bool:
    """Says whether layers of the vision tower are named by number, other than from the end."""
    for part in _parts(config):
        for name, value in vars(part).items():
            if any(word in name for word in _NAMED_LAYERS):
                numbers = value if isinstance(value, (list, tuple)) else [value]
                if any(isinstance(one, int) and one not in (-1, -2) for one in numbers):
                    return True
    return False


def _least_layers(text: Any) -> int:
    """Returns how many layers it takes to have one of every kind."""
    kinds = list(getattr(text, "layer_types", None) or ())
    crossing: list[int] = list(getattr(text, "cross_attention_layers", None) or ())
    first: list[int] = [kinds.index(kind) + 1 for kind in set(kinds)]
    return max([2, *first, *(layer + 2 for layer in crossing[:1])])


def _shorten(part: Any, depth: int) -> None:
    """Takes a part's later layers away, and what is said of them."""
    for name in _LAYERS:
        own = getattr(part, name, None)
        if not isinstance(own, int) or own <= depth:
            continue
        setattr(part, name, depth)
        for setting, value in list(vars(part).items()):
            if isinstance(value, list) and len(value) == own:
                setattr(part, setting, value[:depth])
        crossing = getattr(part, "cross_attention_layers", None)
        if crossing:
            part.cross_attention_layers = [layer for layer in crossing if layer < depth]


def _narrow(text: Any) -> None:
    """Leaves a language model two heads, as wide as they were, and as many experts as matter."""
    heads = text.num_attention_heads
    shared = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    if heads > 2:
        text.num_attention_heads = 2
        text.num_key_value_heads = 2 if shared == heads else 1
        text.hidden_size = 2 * head_dim
        text.intermediate_size = 4 * head_dim
    for name in _EXPERT_WIDTHS:
        if getattr(text, name, None):
            setattr(text, name, text.hidden_size)
    for name, most in _EXPERTS.items():
        if (getattr(text, name, None) or 0) > most:
            setattr(text, name, most)
    if (getattr(text, "num_experts_per_tok", None) or 0) > 2:
        text.num_experts_per_tok = 2
    # Drawn as narrow as trained models are wide: else tokens hardly tell on one another.
    text.initializer_range = text.hidden_size**-0.5
