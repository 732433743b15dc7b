"""A repository on the hub, and what the local cache knows of it. Imports no library."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sailplan.errors import DataError, ModelError

MAIN = "main"
"""The branch that is meant where no revision is written."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """A model or a dataset on the hub, at a branch, a tag or a commit."""

    kind: Literal["model", "dataset"]
    name: str
    """`owner/name`, or the name alone of the oldest ones."""
    revision: str = MAIN

    def __str__(self) -> str:
        """Returns what a user calls it."""
        named = self.name if self.kind == "model" else f"dataset {self.name}"
        return named if self.revision == MAIN else f"{named} at {self.revision[:12]}"

    @property
    def error(self) -> type[ModelError | DataError]:
        """The class of what is wrong with it."""
        return ModelError if self.kind == "model" else DataError

    @property
    def page(self) -> str:
        """Where people read about it."""
        return f"https://huggingface.co/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    @property
    def folder(self) -> Path:
        """Where the hub's cache keeps it, whether it is there or not."""
        return hub_cache() / f"{self.kind}s--{self.name.replace('/', '--')}"

    def snapshot(self, commit: str) -> Path:
        """Returns where the files of a commit lie, whether they are there or not."""
        return self.folder / "snapshots" / commit


def is_commit(revision: str | None) -> bool:
    """Says whether a revision is a commit's full hash, which never moves."""
    return bool(revision and _COMMIT.fullmatch(revision))


def is_hub_name(name: str) -> bool:
    """Says whether a name is one on the hub: it looks like one, and nothing here is called so."""
    return bool(_NAME.fullmatch(name)) and not Path(name).expanduser().exists()


def is_offline(environment: Mapping[str, str] = os.environ) -> bool:
    """Says whether the hub is switched off, as its library reads it from the environment."""
    return any(environment.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in _OFFLINE)


def hub_cache() -> Path:
    """Returns the folder of the hub's cache, as its library finds it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return _path(os.environ[name])
    return _home() / "hub"


def datasets_cache() -> Path:
    """Returns the folder where `datasets` keeps prepared rows, as it finds it."""
    written = os.environ.get("HF_DATASETS_CACHE")
    return _path(written) if written else _home() / "datasets"


def _home() -> Path:
    home = os.environ.get("HF_HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _path(home or f"{cache}/huggingface")


def _path(text: str) -> Path:
    return Path(os.path.expandvars(text)).expanduser()
