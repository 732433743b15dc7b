"""Fetches what a run needs of the hub, so that it trains where there is no network, and pins it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailplan.errors import RunFileError
from sailplan.hub.cache import lacking
from sailplan.hub.download import download, needed
from sailplan.hub.errors import explain, no_answer
from sailplan.hub.repository import Repository, is_offline
from sailplan.hub.revisions import commit_of
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.run.repositories import BUILDERS, Use, pin, uses
from sailplan.sizes import shown_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """One repository that a run needs."""

    use: Use
    commit: str
    """The commit that it is pinned to."""
    num_bytes: int | None
    """Its size; None where it is not known before it comes."""
    new_bytes: int | None
    """What of it has come now, or would come; None where that is not known."""
    folder: Path
    """Where it lies."""

    def __str__(self) -> str:
        """Returns its line: name, revision, bytes, place."""
        repository = self.use.repository
        size = "" if self.num_bytes is None else f", {shown_bytes(self.num_bytes)}"
        here = " (was here)" if self.new_bytes == 0 else ""
        return f"{repository.name} at {self.commit}{size}{here}, {self.folder}"


def pin_all(run: Run, *, update: bool = False) -> Run:
    """Returns the run with a commit for each revision: remembered, else as the hub says.

    Args:
        run: The run.
        update: Ask the hub anew for what is remembered.

    Raises:
        RunFileError: The hub is switched off, and not everything is here.
        OutputError: The run's directory holds another run.
        ModelError: There is no such model or revision.
        DataError: The same of a dataset.
    """
    directory = RunDirectory.of(run)
    if not update:
        run = directory.pinned(run)
    asked = [use.repository for use in uses(run)]
    if is_offline() and any(_is_lacking(use) for use in uses(run)):
        got = "the hub is switched off (HF_HUB_OFFLINE), and not everything is here"
        raise RunFileError(got, todo="unset it, and fetch where there is a network")
    commits = {repository: commit_of(repository) for repository in asked}
    for repository, commit in commits.items():
        if commit is None:
            raise no_answer(repository)
    run = pin(run, {repository: commit for repository, commit in commits.items() if commit})
    directory.check(run)
    return run


def _is_lacking(use: Use) -> bool:
    return lacking(use.repository, weights=use.needs_weights) is not None


def fetch(run: Run, *, dry_run: bool = False) -> Iterator[Fetched]:
    """Fetches what a pinned run needs, one repository after the other.

    Args:
        run: The run, as `pin_all` returns it.
        dry_run: Only say what would come.

    Raises:
        ModelError: A model may not be read, is none, or cannot come whole.
        DataError: The same of a dataset, or it cannot be prepared.
    """
    for use in uses(run):
        fetch_one = _dataset if use.repository.kind == "dataset" else _model
        yield fetch_one(run, use, dry_run)


def _model(run: Run, use: Use, dry_run: bool) -> Fetched:
    commit = use.repository.revision
    if is_offline():
        folder = use.repository.snapshot(commit)
        return Fetched(use=use, commit=commit, num_bytes=_size(folder), new_bytes=0, folder=folder)
    wanted = needed(
        _as_written(run, use.repository),
        commit,
        weights=use.needs_weights,
        code=bool(run.get("trust_remote_code")),
    )
    absent = sum(wanted.absent.values())
    return Fetched(
        use=use,
        commit=commit,
        num_bytes=wanted.num_bytes,
        new_bytes=absent if dry_run else download(wanted),
        folder=wanted.folder,
    )


def _as_written(run: Run, repository: Repository) -> Repository:
    """Returns a repository at the revision that the pin has replaced."""
    written = [asked for asked, commit in run.pins.items() if commit == repository.revision]
    return next((asked for asked in written if asked.name == repository.name), repository)


def _dataset(run: Run, use: Use, dry_run: bool) -> Fetched:
    from sailplan.data.hub import download_bytes, load_builder, prepared
    from sailplan.data.loading import load_splits
    from sailplan.data.sources import sources_of

    source = sources_of(run)[use.entry]
    asked = {"name": source.name, "data_dir": source.data_dir, "data_files": source.data_files}
    builder: Any = prepared(use.repository, asked)
    was_here = builder is not None
    if builder is None and dry_run:
        try:
            builder = load_builder(use.repository, asked)
        except Exception as error:
            raise explain(error, use.repository) or error from error
    elif builder is None:
        print(f"{use.repository.name}: fetching and preparing rows", file=sys.stderr, flush=True)
        load_splits(source)
        builder = prepared(use.repository, asked)
    folder = Path(builder.cache_dir)
    return Fetched(
        use=use,
        commit=use.repository.revision,
        num_bytes=_size(folder) if folder.is_dir() else download_bytes(use.repository, builder),
        new_bytes=0 if was_here else None,
        folder=folder,
    )


def _size(folder: Path) -> int:
    """Returns the bytes of a folder's files, without what `datasets` made of them later."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files if not file.name.startswith("cache-"))


def local_names(run: Run) -> list[str]:
    """Returns the files and folders that the run file names, which are left alone."""
    names = [run.get(name) for name in ("model_name_or_path", "processor_name_or_path")]
    names += [entry["path"] for entry in run.get("datasets") or []] or [run.get("dataset_name")]
    others = {*BUILDERS, *(use.repository.name for use in uses(run))}
    return [name for name in names if name and name not in others]
