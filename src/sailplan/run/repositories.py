"""The hub's repositories that a run names, and the commits that they are pinned to.

A branch moves, a run must not: a revision that is not written as a commit is replaced by the commit
that it is when the run first meets it. The run's directory remembers which: `revisions.json` holds
the commit of each repository and revision as written, and the resolved run file the commits alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailplan.errors import OutputError, RunFileError
from sailplan.files import chat_templates
from sailplan.hub.repository import MAIN, Repository, is_commit, is_hub_name
from sailplan.run.config import Run

REVISIONS: Mapping[str, str] = {
    "model_name_or_path": "model_revision",
    "processor_name_or_path": "processor_revision",
    "chat_template_path": "chat_template_revision",
    "dataset_name": "dataset_revision",
}
"""Each field that may name a repository, and the field of its revision."""

BUILDERS = (
    *("json", "csv", "parquet", "arrow", "text", "xml", "pandas", "webdataset"),
    *("imagefolder", "audiofolder", "videofolder", "generator", "sql"),
)
"""Names that `datasets` reads files by: an entry's `path` may be one, with `data_files`."""

Pins = Mapping[Repository, str]
"""The commit of each repository at its revision as written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """One place of a run file that names a repository."""

    field: str
    """The field, such as `model_name_or_path`; `datasets` for an entry of it."""
    entry: int = 0
    """Which entry of `datasets`, from 0."""
    repository: Repository

    @property
    def needs_weights(self) -> bool:
        """Says whether it is the model; of others the processor alone is needed."""
        return self.field == "model_name_or_path"


def uses(run: Run) -> list[Use]:
    """Returns the repositories that a run names; none of what is a file or a folder here."""
    return [use for use in _uses(run) if is_hub_name(use.repository.name)]


def _uses(run: Run) -> Iterator[Use]:
    for field, revision in REVISIONS.items():
        name = run.get(field)
        is_template = field == "chat_template_path" and (
            str(name).endswith((".jinja", ".j2")) or name in chat_templates()
        )
        replaced = field == "dataset_name" and run.get("datasets")
        if name and not is_template and not replaced:
            kind: Any = "dataset" if field == "dataset_name" else "model"
            asked = run.get(revision) or MAIN
            yield Use(field=field, repository=Repository(kind=kind, name=name, revision=asked))
    for number, entry in enumerate(run.get("datasets") or []):
        if entry["path"] not in BUILDERS:
            asked = entry.get("revision") or MAIN
            repository = Repository(kind="dataset", name=entry["path"], revision=asked)
            yield Use(field="datasets", entry=number, repository=repository)


def pin(run: Run, pins: Pins) -> Run:
    """Returns the run with commits for the revisions in `pins`, and with these as its own pins."""
    explicit = dict(run.explicit)
    new: dict[Repository, str] = {}
    for use in uses(run):
        commit = pins.get(use.repository)
        if commit is None or is_commit(use.repository.revision):
            continue
        new[use.repository] = commit
        if use.field == "datasets":
            entries = [dict(entry) for entry in explicit["datasets"]]
            entries[use.entry]["revision"] = commit
            explicit["datasets"] = entries
        else:
            explicit[REVISIONS[use.field]] = commit
    return dataclasses.replace(run, explicit=explicit, pins={**run.pins, **new}) if new else run


def remembered(run_file: Path, revisions_file: Path) -> dict[Repository, str]:
    """Returns the pins of a run directory: those it lists, and those in its run file alone.

    Raises:
        OutputError: Its list cannot be read.
    """
    pins = dict(_of_run_file(run_file))
    if not revisions_file.is_file():
        return pins
    try:
        listed = json.loads(revisions_file.read_text(encoding="utf-8"))
        for item in listed:
            commit = item.pop("commit")
            pins[Repository(**item)] = commit
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        todo = "delete it to take the revisions of today"
        raise OutputError(f"{revisions_file} cannot be read", todo=todo) from None
    return pins


def _of_run_file(path: Path) -> Iterator[tuple[Repository, str]]:
    """Yields what a resolved run file has pinned; of what was written for it nothing is known."""
    try:
        old = Run.from_file(path) if path.is_file() else None
    except RunFileError:
        return  # whoever claims the directory tells
    for use in uses(old) if old else ():
        repository = use.repository
        if is_commit(repository.revision):
            yield dataclasses.replace(repository, revision=MAIN), repository.revision


def text(pins: Iterable[tuple[Repository, str]]) -> str:
    """Returns the text of a run directory's list of pins."""
    rows = [{**dataclasses.asdict(repository), "commit": commit} for repository, commit in pins]
    return json.dumps(rows, indent=2) + "\n"
