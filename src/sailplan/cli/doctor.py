"""`sailplan doctor [RUN]`: proves the machine, or a cluster, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sailplan.cli.run_files import CONTEXT_SETTINGS as CONTEXT_SETTINGS
from sailplan.cli.run_files import find_run_file

if TYPE_CHECKING:
    from sailplan.preflight.doctor import Line
    from sailplan.preflight.finding import Mark
    from sailplan.run.config import Run

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
    model: Annotated[
        str | None,
        typer.Option(
            help="Check a model instead: its folder or its name on the hub; fields may follow."
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(help="Check a Slurm cluster instead: a profile's name or its file."),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="Nodes of the smoke job; else two where there are two."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where the smoke job writes; else beside the run's directory, or here."),
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds that the smoke job may wait in the queue.")
    ] = 600,
) -> None:
    """Checks the machine, or what a run needs of it: ✓ right, ✗ wrong, – cannot be told here.

    With --cluster it checks a Slurm cluster, by a job of about a minute. With --model it checks
    whether a model trains rightly: labels, image tokens, packing and merging, on a small copy of
    it. Ends with exit code 5 where anything is wrong.
    """
    from sailplan.errors import RunFileError
    from sailplan.preflight.doctor import CHECKS, examine
    from sailplan.preflight.finding import Subject
    from sailplan.run.config import Run
    from sailplan.run.directory import RunDirectory

    if model is not None:
        _model(model, context.args, beside=run, json=json)
        return
    wanted = None
    if run is not None and run.startswith("-"):
        raise RunFileError(f"{run} without a run file", todo="name the run file first")
    if run is not None:
        wanted = Run.from_file(find_run_file(run), context.args)
        wanted = RunDirectory.of(wanted).pinned(wanted)
    if cluster is not None:
        _cluster(cluster, wanted, nodes=nodes, folder=folder, wait_s=wait, quick=quick, json=json)
        return
    if nodes is not None or folder is not None:
        raise RunFileError("--nodes and --folder without --cluster", todo="name a profile")
    lines = examine(Subject.of(wanted), quick=quick)
    _print(lines, [check.name for check in CHECKS], json=json)


def _model(name: str, flags: Sequence[str], *, beside: str | None, json: bool) -> None:
    from sailplan.errors import RunFileError
    from sailplan.preflight.model.doctor import NAMES, examine
    from sailplan.run.config import Run

    if beside is not None:
        raise RunFileError(f"--model beside {beside}", todo="name a model or a run")
    run = Run.from_flags(["--model_name_or_path", name, *flags])
    _print(examine(run), NAMES, json=json)


def _cluster(
    name: str,
    run: Run | None,
    *,
    nodes: int | None,
    folder: Path | None,
    wait_s: float,
    quick: bool,
    json: bool,
) -> None:
    import os

    from sailplan.preflight.cluster.doctor import NAMES, examine
    from sailplan.preflight.cluster.site import Site
    from sailplan.processes import stops_at_once
    from sailplan.run.config import Run
    from sailplan.slurm.profile import settings_of

    settings = settings_of(run or Run(explicit={}), name)
    site = Site(
        settings=settings,
        run=run,
        num_nodes=nodes,
        folder=folder,
        wait_s=wait_s,
        environment={**os.environ, **(run.environment() if run else {})},
    )
    with stops_at_once("stopped as asked, and the smoke job with it"):
        _print(examine(site, quick=quick), NAMES, json=json)


def _print(found: Iterator[Line], names: Sequence[str], *, json: bool) -> None:
    """Prints lines as they come, and ends with exit code 5 where anything is wrong."""
    from sailplan.errors import HardwareError

    width = max(map(len, names))
    lines = []
    for line in found:
        lines.append(line)
        if not json:
            _show(line, width)
    wrong = [line.name for line in lines if line.finding.mark == "failed"]
    if json:
        checks = [line.as_dict() for line in lines]
        print(dumps({"ok": not wrong, "checks": checks}, indent=2, ensure_ascii=False))
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
