"""Dataclasses as JSON, and back."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Returns a dataclass as what JSON can hold."""
    return dataclasses.asdict(value)


def from_json(kind: type[T], data: Any) -> T:
    """Returns the value of a type that `to_json` was given.

    Raises:
        TypeError, KeyError, ValueError: It is the JSON of something else.
    """
    return _read(kind, data)  # type: ignore[no-any-return]  # of the type that is asked for


def _read(kind: Any, data: Any) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        inner = [option for option in get_args(kind) if option is not type(None)]
        return None if data is None else _read(inner[0], data)
    if origin is tuple:
        items = get_args(kind)
        if items[-1:] == (...,):
            return tuple(_read(items[0], item) for item in data)
        return tuple(_read(item, part) for item, part in zip(items, data, strict=True))
    if origin in (dict, Mapping):
        return {key: _read(get_args(kind)[1], item) for key, item in data.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        return kind(**{name: _read(hints[name], item) for name, item in data.items()})
    return data
