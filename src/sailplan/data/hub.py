"""Loads the rows of a dataset on the hub at one commit, the second time without the hub.

`datasets` keeps prepared rows by the commit that they are of, but where the hub is switched off it
takes whichever came last. Here the folder of each configuration is remembered beside them, so that
a pinned revision is found again, and no other.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import xxhash
from datasets.packaged_modules.cache.cache import Cache

from sailplan.files import write_atomically
from sailplan.hub.errors import missing
from sailplan.hub.repository import Repository, is_commit

_REMEMBERED = "sailplan"
"""The folder in the cache of `datasets` that holds what is remembered."""


def hub_splits(
    repository: Repository, *, name: str | None, data_dir: str | None, data_files: Any
) -> Mapping[str, datasets.Dataset]:
    """Returns all splits of a dataset, prepared now or found in the cache.

    Args:
        repository: The dataset, at a commit where the run is pinned.
        name: The configuration.
        data_dir: A folder in the repository.
        data_files: Paths in the repository, in any of the shapes that `load_dataset` takes.

    Raises:
        DataError: The hub is switched off, and this commit is not in the cache.
    """
    asked = {"name": name, "data_dir": data_dir, "data_files": data_files}
    builder = prepared(repository, asked)
    if builder is None:
        builder = load_builder(repository, asked)
        builder.download_and_prepare()
        with contextlib.suppress(OSError):  # a cache that may only be read
            _remember(repository, asked, builder)
    splits: Mapping[str, datasets.Dataset] = builder.as_dataset()
    return splits


def load_builder(repository: Repository, asked: Mapping[str, Any]) -> Any:
    """Returns the builder of a dataset, of which only the list of files has come.

    Raises:
        DataError: There is another commit of it in the cache, and the hub cannot be asked.
    """
    revision = repository.revision
    builder = datasets.load_dataset_builder(repository.name, revision=revision, **asked)
    if is_commit(revision) and builder.hash != revision:  # the last one that came, and another
        raise missing(repository)
    return builder


def download_bytes(repository: Repository, builder: Any) -> int:
    """Returns the bytes of the files that a builder would download, as the hub says."""
    from huggingface_hub import HfApi

    revision = repository.revision
    info = HfApi().dataset_info(repository.name, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    files = (url for urls in (builder.config.data_files or {}).values() for url in urls)
    return sum(sizes.get(str(url).partition(f"@{builder.hash}/")[2], 0) for url in files)


def prepared(repository: Repository, asked: Mapping[str, Any]) -> Cache | None:
    """Returns the builder of rows that are in the cache already; None where they are not."""
    try:
        content = json.loads(_note(repository, asked).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    root = Path(datasets.config.HF_DATASETS_CACHE).expanduser()
    *_, config, version, commit = Path(content["folder"]).parts
    if not is_commit(repository.revision) or not (root / content["folder"]).is_dir():
        return None
    return Cache(
        dataset_name=content["dataset_name"],
        repo_id=repository.name,
        config_name=config,
        version=version,
        hash=commit,
    )


def _remember(repository: Repository, asked: Mapping[str, Any], builder: Any) -> None:
    """Notes where the rows of a commit lie."""
    root = Path(datasets.config.HF_DATASETS_CACHE).expanduser()
    folder = Path(builder.cache_dir)
    if not is_commit(builder.hash) or not folder.is_relative_to(root):
        return
    pinned = Repository(kind="dataset", name=repository.name, revision=builder.hash)
    note = _note(pinned, asked)
    note.parent.mkdir(parents=True, exist_ok=True)
    content = {"dataset_name": builder.dataset_name, "folder": str(folder.relative_to(root))}
    write_atomically(note, json.dumps(content).encode())


def _note(repository: Repository, asked: Mapping[str, Any]) -> Path:
    text = json.dumps([repository.name, repository.revision, dict(asked)], sort_keys=True)
    name = xxhash.xxh3_128_hexdigest(text.encode())
    root = Path(datasets.config.HF_DATASETS_CACHE).expanduser()
    return root / _REMEMBERED / f"{name}.json"
