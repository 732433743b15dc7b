"""`sailplan train RUN`: one run file, on this machine."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Annotated

import typer

from sailplan.cli.run_files import CONTEXT_SETTINGS as CONTEXT_SETTINGS
from sailplan.cli.run_files import find_run_file
from sailplan.processes import stops_at_once


@stops_at_once()
def train(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(help="A run file, a run directory, or the name of a file in launch/."),
    ],
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", "--dry_run", help="Print command, environment and files; write nothing."
        ),
    ] = False,
    no_preflight: Annotated[
        bool,
        typer.Option(
            "--no-preflight",
            "--no_preflight",
            help="Start without looking first at model, data and machine.",
        ),
    ] = False,
) -> None:
    """Fine-tunes a model as a run file says, on this machine.

    Any field of the run file can follow as a flag, such as --learning_rate 1e-4 or
    --launch.gpus_per_node 2; it wins over the file.
    """
    from sailplan.hardware.detect import detect
    from sailplan.launcher.local import meeting_port
    from sailplan.launcher.strategy import refuse_other_machines
    from sailplan.preflight.before import before_launch
    from sailplan.preflight.checks import check
    from sailplan.preflight.ready import preparing
    from sailplan.run.config import Run
    from sailplan.run.directory import RunDirectory
    from sailplan.run.finished import finished
    from sailplan.supervise.attempt_log import settled_before
    from sailplan.supervise.attempts import Attempts

    asked = Run.from_file(find_run_file(run), context.args)
    done = finished(asked)
    if done is not None and not dry_run:
        print(done)
        return
    refuse_other_machines(asked)
    asked = RunDirectory.of(asked).pinned(asked)
    if not no_preflight:
        check(asked)
    environment = {**os.environ, **asked.environment()}
    machine = detect(environment)

    prepare = preparing(
        asked,
        machine,
        environment,
        port=partial(meeting_port, asked),
        refuse=not no_preflight,
    )
    changed, why = settled_before(asked, machine)
    ready = prepare(changed)
    for note in (*asked.notes, *why, *ready.notes):
        # With --dry-run, standard output is for whoever runs or reads the command.
        print(note, file=sys.stderr if dry_run else sys.stdout, flush=True)
    if dry_run:
        print(ready.launch.shell())
        for name in sorted(asked.environment()):
            print(f"# {name} is set as the run file says")
        for path, text in ready.launch.files.items():
            print(f"\n# {path}\n{text}", end="")
        return
    RunDirectory.of(asked).check(ready.kept)
    if not no_preflight:
        before_launch(ready.run, machine, plan=ready.plan)
    attempts = Attempts(
        prepare=prepare,
        machine=machine,
        environment=environment,
        run_file=run,
        asked=asked,
        changed=changed,
    )
    raise typer.Exit(attempts.train(ready))
