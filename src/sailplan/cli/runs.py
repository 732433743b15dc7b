"""`sailplan runs`: how every run under a folder stands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def runs(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]",
            help="Where runs are looked for, a few levels deep; runs/ if it is there, else here.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Lists runs, the newest first: how each stands, how far it is, and how it goes on.

    A run that was stopped, has failed or was killed goes on from its last whole checkpoint by
    `sailplan train` with the same run file or directory.
    """
    from sailplan.errors import RunFileError
    from sailplan.supervise.runs import find_runs

    root = folder or usual_folder()
    if not root.is_dir():
        raise RunFileError(f"there is no folder {root}", todo="name one that holds runs")
    found = find_runs(root)
    if json:
        from json import dumps

        print(dumps([summary.as_dict() for summary in found], indent=2))
    elif found:
        from sailplan.cli.runs_table import print_runs

        print_runs(found, root)
    else:
        where = f"{root.resolve()} and the folders in it"
        print(f"no runs in {where}; `sailplan train` starts one, `sailplan runs DIR` looks in DIR")


def usual_folder() -> Path:
    """Returns where runs are looked for unless it is said."""
    return Path("runs") if Path("runs").is_dir() else Path()
