"""A model with few layers that is like the whole one in all else."""

from __future__ import annotations

import copy
from typing import Any

_LAYERS = 3
"""Layers that are simulated; the last two tell what each further one adds."""


def config_of(fields: Any) -> Any:
    """Returns the transformers config that the fields of a `config.json` describe.

    Raises:
        ValueError: transformers does not know the architecture.
    """
    from transformers import AutoConfig

    fields = {name: value for name, value in dict(fields).items() if name != "quantization_config"}
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def shallow(config: Any) -> Any:
    """Returns a copy of a config with few layers in the language model and in the vision tower."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    _shorten(text, "num_hidden_layers", _LAYERS * _period(text))
    for name in ("vision_config", "vit_config"):
        vision = getattr(small, name, None)
        if vision is None:
            continue
        key = "depth" if hasattr(vision, "depth") else "num_hidden_layers"
        before = getattr(vision, key)
        depth = max(_LAYERS, *map(_deepest_from_end, _feature_layers(small, vision, before)), 0)
        _shorten(vision, key, depth)
        _move_features(small, vision, before, getattr(vision, key))
    return small


def _period(text: Any) -> int:
    """Returns after how many layers their kinds repeat, where that changes what they hold."""
    crossing = getattr(text, "cross_attention_layers", None)
    if not crossing or len(crossing) < 2:
        return 1
    return int(crossing[1]) - int(crossing[0])


def _shorten(config: Any, key: str, layers: int) -> None:
    before = getattr(config, key)
    layers = min(layers, before)
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == before and name != "id2label":
            setattr(config, name, value[:layers])
    setattr(config, key, layers)
    crossing = getattr(config, "cross_attention_layers", None)
    if crossing:
        config.cross_attention_layers = [index for index in crossing if index < layers]


_FEATURES = ("vision_feature_layer", "vit_layers")
_INDEXES = ("deepstack_visual_indexes", "intermediate_layers_indices", "fullatt_block_indexes")


def _feature_layers(config: Any, vision: Any, depth: int) -> list[tuple[list[int], int]]:
    """Returns the lists that name layers of the tower, each with the tower's depth."""
    found = []
    for holder in (config, vision, getattr(config, "adapter_config", None)):
        for name in _FEATURES:
            value = getattr(holder, name, None)
            if value is not None:
                listed = [value] if isinstance(value, int) else list(value)
                # counted from the end, the tower's output is -1
                found.append(([i if i < 0 else i - depth - 1 for i in listed], depth))
    for name in _INDEXES:
        value = getattr(vision, name, None)
        if value:
            found.append(([-len(value)], depth))
    return found


def _deepest_from_end(named: tuple[list[int], int]) -> int:
    indexes, depth = named
    return min(depth, 2 - min(indexes))


def _move_features(config: Any, vision: Any, before: int, after: int) -> None:
    """Renames layers so that they lie as far from the end of the tower as they did."""
    if before == after:
        return
    for holder in (config, vision, getattr(config, "adapter_config", None)):
        for name in _FEATURES:
            value = getattr(holder, name, None)
            if isinstance(value, int) and value >= 0:
                setattr(holder, name, max(0, value - before + after))
            elif isinstance(value, list | tuple):
                moved = [i if i < 0 else max(0, i - before + after) for i in value]
                setattr(holder, name, moved)
    for name in _INDEXES:
        value = getattr(vision, name, None)
        if value:
            setattr(vision, name, list(range(after - len(value), after)))
