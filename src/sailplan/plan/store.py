"""A cache on disk of what plans are made from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from sailplan import __version__
from sailplan.files import write_atomically
from sailplan.imports import installed_versions
from sailplan.records import from_json, to_json

T = TypeVar("T")

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes")
"""Packages whose versions decide what a simulation finds."""


def cache_folder() -> Path:
    """Returns where profiles are kept: `$SAILPLAN_CACHE`, else below the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    written = os.environ.get("SAILPLAN_CACHE") or f"{home}/sailplan"
    return Path(os.path.expandvars(written)).expanduser() / "plans"


_DEALING = (
    *(f"data/{name}.py" for name in ("balance", "extent", "sampler", "work")),
    *(f"model/{name}.py" for name in ("batching", "families", "packed_attention")),
)
"""How micro batches are made, beside this room."""


class NotKeptError(Exception):
    """What is asked for was not made before, and may not be made now."""


_only_kept: ContextVar[bool] = ContextVar("only_kept", default=False)


@contextmanager
def only_kept() -> Iterator[None]:
    """Has `cached` make nothing: it raises `NotKeptError` instead."""
    token = _only_kept.set(True)
    try:
        yield
    finally:
        _only_kept.reset(token)


def cached(kind: type[T], key: str, make: Callable[[], T]) -> T:
    """Returns what was made under a key with these versions before, else makes and keeps it.

    Args:
        kind: Of the value, a dataclass.
        key: All that decides on it.
        make: Makes it.

    Raises:
        NotKeptError: Within `only_kept`, there is nothing under the key.
    """
    found = recall(kind, key)
    if found is None:
        if _only_kept.get():
            raise NotKeptError(kind.__name__)
        found = make()
        keep(found, key)
    return found


def recall(kind: type[T], key: str) -> T | None:
    """Returns what is kept under a key; None where there is nothing, or nothing readable."""
    try:
        return from_json(kind, json.loads(_path(kind, key).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep(value: Any, key: str) -> None:
    """Keeps a value under a key; a folder that cannot be written is passed over."""
    path = _path(type(value), key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(to_json(value)).encode())
    except OSError:
        return


def _path(kind: type, key: str) -> Path:
    made_by = {"sailplan": [__version__, _sources()], **installed_versions(PACKAGES)}
    digest = xxhash.xxh3_128_hexdigest(f"{kind.__name__}\0{made_by}\0{key}".encode())
    return cache_folder() / f"{kind.__name__.lower()}-{digest}.json"


@cache
def _sources() -> list[tuple[str, int, int]]:
    """Returns size and time of the files that plans follow from.

    A clone's version stays while they change.
    """
    room = Path(__file__).parent
    files = [*sorted(room.rglob("*.py")), *(room.parent / name for name in _DEALING)]
    status = {str(path.relative_to(room.parent)): path.stat() for path in files}
    return [(name, found.st_size, found.st_mtime_ns) for name, found in status.items()]
