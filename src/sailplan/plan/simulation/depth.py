"""A model with few layers that is like the whole one in all else."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from sailplan.errors import ModelError

_LAYERS = 3
"""Layers that are simulated; the last two tell what each further one adds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """Layers of one kind, of which only a few are simulated."""

    name: str
    """Of the module list, in the model that PEFT does not wrap."""
    depth: int
    """Layers of the whole model."""
    shallow: int
    """Layers that are simulated."""
    period: int
    """After how many layers their kinds repeat."""


def stacks_of(whole: Any, small: Any) -> tuple[Stack, ...]:
    """Returns the layers of a model, the vision tower's first, as they are computed.

    Args:
        whole: The model as transformers made it, of full depth.
        small: The same, shallow.
    """
    from torch import nn
    from transformers.modeling_layers import GradientCheckpointingLayer

    from sailplan.model.parts import find_parts

    parts = find_parts(whole)
    lists = {name: m for name, m in small.named_modules() if isinstance(m, nn.ModuleList)}
    found: list[Stack] = []
    for name, layers in whole.named_modules():
        if not isinstance(layers, nn.ModuleList) or name not in lists or not len(layers):
            continue
        is_inner = any(name.startswith(f"{stack.name}.") for stack in found)
        is_layer = isinstance(layers[0], GradientCheckpointingLayer) or hasattr(
            layers[0], "self_attn"
        )
        if is_inner or not is_layer:
            continue
        period = 1 if parts.is_vision(name) else _period(whole.config.get_text_config())
        found.append(Stack(name=name, depth=len(layers), shallow=len(lists[name]), period=period))
    return tuple(sorted(found, key=lambda stack: not parts.is_vision(stack.name)))


def config_of(fields: Any) -> Any:
    """Returns the transformers config that the fields of a `config.json` describe.

    Raises:
        ModelError: transformers does not know the architecture, or cannot read the fields.
    """
    from transformers import AutoConfig

    fields = {name: value for name, value in dict(fields).items() if name != "quantization_config"}
    kind = fields.pop("model_type", None)
    try:
        return AutoConfig.for_model(kind, **copy.deepcopy(fields))
    except Exception as error:
        known = "Unrecognized model" in str(error)
        why = "it has no such architecture" if known else f"{type(error).__name__}: {error}"
        raise ModelError(
            f"the installed transformers reads no config of model_type {kind!r} ({why})",
            todo="a model with code of its own cannot be simulated; plan a model of its shapes",
        ) from None


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
