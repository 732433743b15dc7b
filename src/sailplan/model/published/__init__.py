"""Public models that can be planned without the hub: their configs and numbers of parameters.

One JSON file a model lies beside this module, named after its repository with `--` for the slash.
It holds the fields of `config.json` that decide shapes and image tokens, the fields of
`preprocessor_config.json` that decide an image's size, and the published number of parameters with
its source. Each file is proven by a test that builds the model and counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What is publicly known of one model."""

    name: str
    """Its repository on the Hugging Face hub."""
    aliases: tuple[str, ...]
    """Repositories with the same shapes: base and instruct, older names, mirrors.

    Ids of text tokens and the longest position may differ there."""
    source: str
    """Where the config and the count come from."""
    parameters: int
    """Number of parameters, each tied weight once."""
    parameters_exact: bool
    """Whether the published count is exact; where not, it is rounded and `parameters` fits it."""
    published_count: str
    """The count as it was published: `8,291,375,616`, or `12.7B` where only that is known."""
    also_published: int
    """What an exact published count holds beyond `parameters`: a tied head saved twice, buffers."""
    config: dict[str, Any]
    """Fields of `config.json`, with `model_type`."""
    processor: dict[str, Any]
    """Fields of `preprocessor_config.json`; empty for a model that sees no images."""


def published(name: str) -> Published | None:
    """Returns what is known of a model, None where it is not in the table.

    Args:
        name: A repository or one of its aliases; case does not matter.
    """
    path = _paths().get(name.strip().strip("/").lower())
    return None if path is None else _read(path)


def names() -> tuple[str, ...]:
    """Returns the repositories of the table in alphabetical order, without their aliases."""
    return tuple(sorted((_name(path) for path in _FOLDER.glob("*.json")), key=str.lower))


@cache
def _paths() -> dict[str, Path]:
    """Returns the file of every name and alias, in lower case."""
    found: dict[str, Path] = {}
    for path in _FOLDER.glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        for name in (_name(path), *record.get("aliases", ())):
            found[name.lower()] = path
    return found


def _name(path: Path) -> str:
    return path.name.removesuffix(".json").replace("--", "/")


def _read(path: Path) -> Published:
    record = json.loads(path.read_text(encoding="utf-8"))
    return Published(
        name=_name(path),
        aliases=tuple(record.get("aliases", ())),
        source=record["source"],
        parameters=record["parameters"],
        parameters_exact=record["parameters_exact"],
        published_count=record["published_count"],
        also_published=record.get("also_published", 0),
        config=record["config"],
        processor=record.get("processor", {}),
    )
