"""Which commit a branch or a tag is: as the hub says, else as the local caches know."""

from __future__ import annotations

from pathlib import Path

from sailplan.hub.errors import explain
from sailplan.hub.repository import Repository, datasets_cache, is_commit, is_offline


def commit_of(repository: Repository) -> str | None:
    """Returns a revision's commit; None where neither the hub nor a cache can tell.

    The hub is asked unless it is switched off. Where it does not answer, the caches count.

    Raises:
        ModelError: The hub says that there is no such model or revision, or that it is gated.
        DataError: The same of a dataset.
    """
    if is_commit(repository.revision):
        return repository.revision
    if is_offline():
        return cached_commit(repository)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().repo_info(
            repository.name, repo_type=repository.kind, revision=repository.revision
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise explain(error, repository) or error from None
    except Exception:  # of many kinds: no network, a proxy's answer, a hub that is down
        return cached_commit(repository)
    return str(info.sha)


def cached_commit(repository: Repository) -> str | None:
    """Returns the commit that a revision was when it came into the caches, None if it did not."""
    if is_commit(repository.revision):
        return repository.revision
    reference = repository.folder / "refs" / repository.revision
    if reference.is_file():
        return reference.read_text(encoding="utf-8").strip()
    if repository.kind == "dataset":
        prepared = sorted(prepared_folders(repository), key=lambda path: path.stat().st_mtime)
        return prepared[-1].name if prepared else None
    return None


def prepared_folders(repository: Repository, commit: str = "*") -> list[Path]:
    """Returns where `datasets` keeps the prepared rows of a dataset: one folder a configuration."""
    owner, _, name = repository.name.rpartition("/")
    # Its own rule: the owner, and the name in lower case with underscores.
    found = datasets_cache().glob(f"{owner}___*/*/*/{commit}" if owner else f"*/*/*/{commit}")
    return [
        path
        for path in found
        if is_commit(path.name)
        and _plain(path.parents[2].name.rpartition("___")[2]) == _plain(name)
    ]


def _plain(name: str) -> str:
    return name.lower().replace("_", "")
