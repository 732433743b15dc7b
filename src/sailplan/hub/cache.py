"""What of a repository is in the local cache, from the names of its files alone."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from sailplan.hub.repository import Repository
from sailplan.hub.revisions import cached_commit, prepared_folders

CONFIG = "config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "processor_config.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The files that transformers loads, in its order; each may be sharded, listed in an index."""


def lacking(repository: Repository, *, weights: bool = True) -> str | None:
    """Returns what of a repository is not in the cache: a file, or "" for all of it; None if none.

    Args:
        repository: The repository; its revision as the run has it.
        weights: Of a model, whether its weights are needed, or its processor alone.
    """
    commit = cached_commit(repository)
    if repository.kind == "dataset":
        return None if commit and prepared_folders(repository, commit) else ""
    folder = repository.snapshot(commit or "none")
    if not folder.is_dir():
        return ""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.exists()}
    if not weights:
        return None if names & set(TOKENIZERS) else "the processor"
    if CONFIG not in names:
        return ""
    return _lacking_weights(folder, names)


def _lacking_weights(folder: Path, names: Collection[str]) -> str | None:
    for name in WEIGHTS:
        if name in names:
            return None
        if index_of(name) in names:
            shards = shards_of((folder / index_of(name)).read_text(encoding="utf-8"))
            absent = [shard for shard in shards if shard not in names]
            return absent[0] if absent else None
    return "the weights"


def index_of(name: str) -> str:
    """Returns the name of the file that lists the shards of weights."""
    return f"{name}.index.json"


def shards_of(index: str) -> list[str]:
    """Returns the files that an index lists; none where it is broken, which loading tells."""
    try:
        return sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
