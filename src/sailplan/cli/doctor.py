"""`sailplan doctor [RUN]`: proves the machine, line by line."""

from __future__ import annotations

from json import dumps
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sailplan.preflight.doctor import Line
    from sailplan.preflight.finding import Mark

CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Every field of a run file is a flag, as for `train`."""

_COLOURS: dict[Mark, str] = {"ok": "green", "failed": "red", "not checked": "yellow"}


def doctor(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(help="A run file, a run directory, or the name of a file in launch/."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Leave out what takes seconds: libraries, compiling, the smoke test."
        ),
    ] = False,
) -> None:
    """Checks the machine, or what a run needs of it: ✓ right, ✗ wrong, – cannot be told here.

    Ends with exit code 5 where anything is wrong.
    """
    from sailplan.cli.run_files import find_run_file
    from sailplan.errors import HardwareError, RunFileError
    from sailplan.preflight.doctor import CHECKS, examine
    from sailplan.preflight.finding import Subject
    from sailplan.run.config import Run
    from sailplan.run.directory import RunDirectory

    wanted = None
    if run is not None and run.startswith("-"):
        raise RunFileError(f"{run} without a run file", todo="name the run file first")
    if run is not None:
        wanted = Run.from_file(find_run_file(run), context.args)
        wanted = RunDirectory.of(wanted).pinned(wanted)
    subject = Subject.of(wanted)
    width = max(len(check.name) for check in CHECKS)
    lines = []
    for line in examine(subject, quick=quick):
        lines.append(line)
        if not json:
            _show(line, width)
    wrong = [line.name for line in lines if line.finding.mark == "failed"]
    if json:
        found = {"ok": not wrong, "checks": [line.as_dict() for line in lines]}
        print(dumps(found, indent=2, ensure_ascii=False))
    else:
        left = sum(line.finding.mark == "not checked" for line in lines)
        end = f"{len(wrong)} of {len(lines)} checks failed" if wrong else "nothing is wrong"
        print(f"\n{end}" + (f"; {left} checks could not be made here" if left else ""))
    if wrong:
        raise typer.Exit(HardwareError.exit_code)


def _show(line: Line, width: int) -> None:
    from sailplan.preflight.finding import SIGNS

    sign = typer.style(SIGNS[line.finding.mark], fg=_COLOURS[line.finding.mark], bold=True)
    typer.echo(f"{sign} {line.name:<{width}}  {line.finding.text}")
    if line.finding.fix:
        typer.echo(f"  {'':<{width}}  -> {line.finding.fix}")
    for said in line.finding.detail.splitlines():
        typer.echo(f"  {'':<{width}}   | {said}")
