"""`sailplan watch RUN`: a run, live in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from sailplan.cli.run_files import CONTEXT_SETTINGS as CONTEXT_SETTINGS
from sailplan.cli.run_files import find_directory


def watch(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            help="A run directory, a run file, or a name that `sailplan runs` shows here."
        ),
    ],
    once: Annotated[bool, typer.Option("--once", help="Show how the run is now, and end.")] = False,
) -> None:
    """Shows a run live in the terminal until it ends, and says how it ended.

    q or Ctrl-C leaves; the run is not touched. Without a terminal each record is printed as a line.
    """
    from sailplan.supervise.live import follow_lines, follow_on_terminal, show_once
    from sailplan.supervise.runs import is_run
    from sailplan.supervise.shown import console_of

    directory, _ = find_directory(run, known=is_run, overrides=context.args)
    console = console_of()
    if once:
        show_once(directory, console)
    elif console.is_terminal:
        follow_on_terminal(directory, console)
    else:
        follow_lines(directory)
