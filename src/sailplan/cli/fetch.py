"""`sailplan fetch RUN`: model, processor and data into the local caches, at pinned revisions."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from sailplan.cli.run_files import CONTEXT_SETTINGS as CONTEXT_SETTINGS
from sailplan.cli.run_files import find_run_file


def fetch(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(help="A run file, a run directory, or the name of a file in launch/."),
    ],
    update: Annotated[
        bool,
        typer.Option("--update", help="Ask anew for the revisions that are pinned already."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "--dry_run", help="Only say what would come; write nothing."),
    ] = False,
) -> None:
    """Gets what a run needs of the hub, so that it trains where there is no network.

    Model, processor and data come into the caches of the Hugging Face libraries, each pinned to a
    commit that the run then trains with. Fields of the run file can follow as flags.
    """
    import os

    from sailplan import fetch as room
    from sailplan.preflight.checks import check
    from sailplan.run.config import Run
    from sailplan.run.directory import RunDirectory

    path = find_run_file(run)
    wanted = Run.from_file(path, context.args)
    os.environ.update(wanted.environment())
    check(wanted)
    pinned = room.pin_all(wanted, update=update)
    for name in room.local_names(pinned):
        print(f"{name} is here: nothing to fetch")
    came = list[bool]()
    for fetched in room.fetch(pinned, dry_run=dry_run):
        came.append(fetched.new_bytes != 0)
        print(f"{'would fetch ' if dry_run and came[-1] else ''}{fetched}", flush=True)
    if not came or dry_run:
        return
    directory = RunDirectory.of(pinned)
    directory.remember(pinned)
    if not any(came):
        print("everything was here")
    print(f"pinned in {directory.revisions_file}; where there is no network:")
    print(shlex.join(["HF_HUB_OFFLINE=1", "sailplan", "train", run, *context.args]))
