"""The hub: is its cache writable, is a token there that counts, is the model at hand?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sailplan.errors import SailplanError
from sailplan.hub.cache import lacking
from sailplan.hub.repository import datasets_cache, hub_cache, is_offline
from sailplan.preflight import children
from sailplan.preflight.checks import check, check_hub
from sailplan.preflight.finding import Finding, Subject, failed, of_error, ok, unchecked
from sailplan.preflight.rows import check_first_rows
from sailplan.run.repositories import uses

TIMEOUT_S = 30.0
"""Of the hub's answer, and of the library that asks it."""


def writable(subject: Subject) -> Finding:
    """Can the hub's cache, and that of prepared rows, be written?"""
    downloads = subject.run is None or bool(uses(subject.run))
    downloads = downloads and not is_offline(subject.environment)
    folders = [*([hub_cache()] if downloads else []), datasets_cache()]
    for folder in folders:
        trouble = _trouble(folder)
        if trouble:
            return failed(
                f"{folder} cannot be written ({trouble})",
                fix="set HF_HOME to a folder that can be, or free its disk",
            )
    text = " and ".join(map(str, folders))
    return ok(f"{text} can be written")


def _trouble(folder: Path) -> str:
    """Returns why nothing can be written into a folder that may have to be made first."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        return f"{there} is a file"
    try:
        with tempfile.NamedTemporaryFile(dir=there) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def token(subject: Subject) -> Finding:
    """Is there a token, and does the hub take it, where the run needs one?"""
    pushes = subject.run is not None and bool(subject.run.get("push_to_hub"))
    if is_offline(subject.environment):
        return unchecked("the hub is switched off (HF_HUB_OFFLINE)")
    from huggingface_hub import get_token

    found = subject.environment.get("HF_TOKEN") or get_token()
    if not found:
        if pushes:
            return failed("push_to_hub without a token", fix="set HF_TOKEN, or run `hf auth login`")
        return ok("none; only gated and private repositories need one")
    return _ask(subject)


def _ask(subject: Subject) -> Finding:
    child = children.ask(
        "sailplan.preflight.probes.token",
        environment=subject.environment,
        label="asking the hub",
        timeout_s=TIMEOUT_S,
    )
    found = child.answer or {"name": "", "refused": False}
    if found["refused"]:
        fix = "make a new one at huggingface.co/settings/tokens, and set HF_TOKEN"
        return failed("the hub refuses the token", fix=fix)
    if not found["name"]:
        return unchecked("there is one, and the hub does not answer")
    return ok(f"the hub knows it as {found['name']}")


def at_hand(subject: Subject) -> Finding:
    """Are the model and the data here, or can they come?"""
    run = subject.run
    if run is None:
        return unchecked("no run is named")
    # Whether a push would be taken, the line about the token tells.
    run = replace(run, explicit={**run.explicit, "push_to_hub": False})
    try:
        check(run)
        check_hub(run)
        check_first_rows(run)
    except SailplanError as error:
        return of_error(error)
    absent = list(_absent(subject))
    if absent:
        text = f"not here yet, and fetched when training starts: {', '.join(absent)}"
        return ok(text, fix=f"sailplan fetch {run.source or 'RUN'}")
    return ok("the model and the data are here")


def _absent(subject: Subject) -> Iterator[str]:
    for use in uses(subject.run) if subject.run else ():
        piece = lacking(use.repository, weights=use.needs_weights)
        if piece is not None:
            yield f"{piece} of {use.repository}" if piece else str(use.repository)
