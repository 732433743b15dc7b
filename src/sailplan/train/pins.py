"""Pins the revisions that only the hub or a cache can tell, the same on every rank."""

from __future__ import annotations

import dataclasses

from sailplan.data.ranks import from_first_rank
from sailplan.hub.revisions import commit_of
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.run.repositories import pin, uses


def pinned(run: Run) -> Run:
    """Returns the run with a commit for each revision; the process group must be there.

    A commit that the run's directory remembers is taken. The others the first rank asks for, and
    tells the rest: a branch that moves meanwhile would have ranks train different models. What
    neither the hub nor a cache knows stays open, for the loaders to tell.

    Raises:
        OutputError: What the directory remembers cannot be read.
        ModelError: The hub says that there is no such model or revision.
        DataError: The same of a dataset.
    """
    run = RunDirectory.of(run).pinned(run)
    asked = [use.repository for use in uses(run)]
    if not asked:
        return run
    commits = from_first_rank(lambda: [commit_of(repo) for repo in asked])
    known = {repo: commit for repo, commit in zip(asked, commits, strict=True) if commit}
    notes = [
        f"{repo.name} is pinned to {commit}"
        for repo, commit in known.items()
        if repo.revision != commit
    ]
    return dataclasses.replace(pin(run, known), notes=(*run.notes, *notes))
