"""Files of a run, read for a report: what is broken, or of another version, is as if not there."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sailplan.errors import SailplanError
from sailplan.records import from_json
from sailplan.run.secrets import is_secret

T = TypeVar("T")

_MOST_BYTES = 2**28
"""No file of a run is larger that a report reads whole; a larger one is something else."""

_NOT_TOLD = "(not told: there is a secret in it)"

BROKEN = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError, SailplanError),
)
"""What reading a file raises that holds something else than was written."""


def or_else(default: T, read: Callable[[], T]) -> T:
    """Returns what a function reads, or a default where the file is broken."""
    try:
        return read()
    except BROKEN:
        return default


def text_of(path: Path) -> str:
    """Returns a file's text, with U+FFFD for what is none; empty where it cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return ""
        return path.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        return ""


def json_of(path: Path) -> Any:
    """Returns the JSON of a file; None where it holds none."""
    return or_else(None, lambda: json.loads(text_of(path)))


def told(words: str) -> str:
    """Returns words that go into a report, which is there to be sent; none that hold a secret."""
    return _NOT_TOLD if is_secret("", words) else words


def mapping_of(value: Any) -> dict[str, Any]:
    """Returns a JSON object as it is, and an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def objects_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the JSON objects of a file that has one a line; other lines are passed over."""
    for line in text_of(path).split("\n"):
        found = or_else(None, lambda line=line: json.loads(line))  # type: ignore[misc]
        if isinstance(found, dict):
            yield found


def record_of(kind: type[T], data: Any) -> T | None:
    """Returns a dataclass from JSON; None where any of its values is of another type."""

    def read() -> T | None:
        found = from_json(kind, data)
        return found if fits(kind, found) else None

    return or_else(None, read)


def fits(kind: Any, value: Any) -> bool:
    """Says whether a value is of a type, down to the parts of tuples, mappings and dataclasses."""
    if kind is Any:
        return True
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind)
    if origin in (Union, types.UnionType):
        return any(fits(option, value) for option in get_args(kind))
    if origin is tuple:
        return isinstance(value, tuple) and _parts_fit(get_args(kind), value)
    if origin in (dict, Mapping):
        inner = get_args(kind)
        return isinstance(value, Mapping) and all(
            fits(inner[0], key) and fits(inner[1], item) for key, item in value.items()
        )
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return isinstance(value, kind) and all(  # type: ignore[arg-type]  # a class, not an instance
            fits(hint, getattr(value, name)) for name, hint in hints.items()
        )
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _parts_fit(kinds: tuple[Any, ...], value: tuple[Any, ...]) -> bool:
    if kinds[-1:] == (...,):
        return all(fits(kinds[0], part) for part in value)
    return len(kinds) == len(value) and all(map(fits, kinds, value))
