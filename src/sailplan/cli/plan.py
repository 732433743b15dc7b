"""`sailplan plan RUN`: what a run will need and take on some GPUs, before it is started."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sailplan.cli.run_files import CONTEXT_SETTINGS as CONTEXT_SETTINGS
from sailplan.cli.run_files import find_run_file


def plan(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(help="A run file, a run directory, or the name of a file in launch/."),
    ],
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="The GPU, such as H100-80GB; else launch.gpu.")
    ] = None,
    gpus_per_node: Annotated[
        int | None,
        typer.Option("--gpus-per-node", "--gpus_per_node", min=1, help="GPUs of a machine."),
    ] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Machines.")] = None,
    measured: Annotated[
        Path | None,
        typer.Option("--measured", help="A run directory whose measurements correct the plan."),
    ] = None,
    all_candidates: Annotated[
        bool, typer.Option("--all", help="Show every candidate that was weighed.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Says what a run needs and how long it takes on some GPUs, and how it is best divided.

    It works without a GPU, from the model's config alone, and measures the rows where they are at
    hand. Any field of the run file can follow as a flag, as `sailplan train` takes them.
    """
    from json import dumps

    from sailplan.cli.plan_tables import show
    from sailplan.hardware.detect import detect
    from sailplan.imports import calm_libraries
    from sailplan.launcher.planned import asked_strategy
    from sailplan.plan.facts.card import card_of
    from sailplan.plan.measured import corrections_of
    from sailplan.plan.of_run import plan_of
    from sailplan.run.config import Run
    from sailplan.run.directory import RunDirectory

    calm_libraries()
    asked = {"gpu": gpu, "gpus_per_node": gpus_per_node, "nodes": nodes}
    flags = [
        word
        for name, value in asked.items()
        if value is not None
        for word in (f"--launch.{name}", str(value))
    ]
    wanted = Run.from_file(find_run_file(run), [*context.args, *flags])
    wanted = RunDirectory.of(wanted).pinned(wanted)
    strategy, notes = asked_strategy(wanted)
    card = card_of(wanted, detect())
    corrections = corrections_of(measured, wanted, card) if measured else None
    found = plan_of(wanted, card, strategy=strategy, corrections=corrections)
    for note in (*wanted.notes, *notes):
        print(note, file=sys.stderr if json else sys.stdout)
    if json:
        print(dumps(found.as_dict(all_candidates=all_candidates), indent=2))
    else:
        show(found, all_candidates=all_candidates)
    if not found.fits:
        raise typer.Exit(5)
