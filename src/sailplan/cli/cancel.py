"""`sailplan cancel RUN`: ends a run, here or in Slurm."""

from __future__ import annotations

from typing import Annotated

import typer

from sailplan.cli.run_files import CONTEXT_SETTINGS as CONTEXT_SETTINGS
from sailplan.cli.run_files import find_directory


def cancel(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            help="A run directory, a run file, or a name that `sailplan runs` shows here."
        ),
    ],
    now: Annotated[
        bool, typer.Option("--now", help="End it at once; steps since the last save are lost.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has ended.")] = False,
) -> None:
    """Ends a run for good, until somebody starts it again: one that trains saves and stops first.

    Jobs that wait in Slurm, and those that come after training, are cancelled.
    """
    from sailplan.supervise.cancel import cancel as end
    from sailplan.supervise.cancel import wait_for_end
    from sailplan.supervise.runs import is_run
    from sailplan.terminal import harmless

    directory, _ = find_directory(run, known=is_run, overrides=context.args)
    done = end(directory, at_once=now)
    for line in done.lines:
        print(harmless(line), flush=True)
    if wait and done.has_to_end:
        print(harmless(wait_for_end(directory)))
