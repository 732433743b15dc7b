"""`sailplan logs RUN`: what a run prints, here or in Slurm."""

from __future__ import annotations

from typing import Annotated

import typer

from sailplan.cli.run_files import CONTEXT_SETTINGS as CONTEXT_SETTINGS
from sailplan.cli.run_files import find_directory


def logs(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            help="A run directory, a run file, or a name that `sailplan runs` shows here."
        ),
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as it grows, until the run ends.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option("--rank", min=0, help="The log of one rank, over all launches.")
    ] = None,
    job: Annotated[
        str | None,
        typer.Option("--job", metavar="KIND", help="The log of a job: train, merge or compare."),
    ] = None,
    lines: Annotated[
        int | None,
        typer.Option("--lines", "-n", min=1, help="Only the last lines; with --follow first 20."),
    ] = None,
) -> None:
    """Prints a run's log: its training job's in Slurm, else its first rank's.

    Following goes on when Slurm queues the job again; while there is nothing to print it says what
    the run waits for, on standard error. Ctrl-C leaves; the run is not touched.
    """
    from sailplan.errors import RunFileError
    from sailplan.slurm.jobs import KINDS
    from sailplan.supervise.logs import FOLLOWED_LINES, Wanted, follow_log, print_log
    from sailplan.supervise.runs import is_run

    if job is not None and job not in KINDS:
        raise RunFileError(f"--job {job!r} is none", allowed=", ".join(KINDS))
    if job is not None and rank is not None:
        raise RunFileError("--job and --rank name two logs", todo="drop one of them")
    directory, _ = find_directory(run, known=is_run, overrides=context.args)
    wanted = Wanted(rank=rank, kind=job)
    if follow:
        follow_log(directory, wanted, num_lines=lines or FOLLOWED_LINES)
    else:
        print_log(directory, wanted, num_lines=lines)
