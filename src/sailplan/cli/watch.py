"""`sailplan watch RUN`: a run, live in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sailplan.cli.run_files import CONTEXT_SETTINGS as CONTEXT_SETTINGS
from sailplan.cli.run_files import find_run_file


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
    from sailplan.supervise.shown import console_of

    directory = find_run_directory(run, context.args)
    console = console_of()
    if once:
        show_once(directory, console)
    elif console.is_terminal:
        follow_on_terminal(directory, console)
    else:
        follow_lines(directory)


def find_run_directory(name: str, overrides: list[str]) -> Path:
    """Returns the directory of the run that is meant; it may not be there yet.

    Args:
        name: A directory, a run file, or a directory's name below the one where runs usually lie.
        overrides: Fields of the run file as flags.

    Raises:
        RunFileError: There is none, or the run file is wrong.
    """
    from sailplan.cli.runs import usual_folder
    from sailplan.run.config import Run
    from sailplan.run.directory import RunDirectory
    from sailplan.supervise.runs import is_run

    path = Path(name).expanduser()
    for folder in (path, usual_folder() / path):
        if name and is_run(folder):
            return folder
    return RunDirectory.of(Run.from_file(find_run_file(name), overrides)).path
