"""`sailplan submit RUN`: a run into Slurm's queue, and what comes after it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sailplan.cli.run_files import CONTEXT_SETTINGS as CONTEXT_SETTINGS
from sailplan.cli.run_files import find_run_file
from sailplan.errors import OutputError, RunFileError

if TYPE_CHECKING:
    from sailplan.preflight.submission import Submission
    from sailplan.run.config import Run
    from sailplan.slurm.jobs import Kind


def submit(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(help="A run file, a run directory, or the name of a file in launch/."),
    ],
    cluster: Annotated[
        str | None,
        typer.Option(help="A cluster's profile: its name or its file; else slurm.cluster."),
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="The same as --launch.nodes.")] = None,
    then: Annotated[
        str,
        typer.Option(help="What follows training: merge, compare, or merge,compare."),
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "--dry_run", help="Print the scripts; write and submit nothing."),
    ] = False,
    no_fetch: Annotated[
        bool,
        typer.Option(
            "--no-fetch", "--no_fetch", help="Leave it to the nodes to ask the hub for files."
        ),
    ] = False,
    no_preflight: Annotated[
        bool,
        typer.Option(
            "--no-preflight",
            "--no_preflight",
            help="Submit without looking first at model, data and plan.",
        ),
    ] = False,
) -> None:
    """Trains a run on a Slurm cluster: one command, from the plan to the queue.

    The run is checked and planned for the cluster's nodes, what it needs of the hub is fetched, and
    a job is submitted that stops before its time is over, goes on by itself, and survives crashes.
    Any field of the run file can follow as a flag, such as --slurm.time 08:00:00.
    """
    from sailplan.hardware.detect import detect
    from sailplan.preflight.before import before_launch
    from sailplan.preflight.checks import check
    from sailplan.preflight.submission import on_cluster, submission
    from sailplan.run.config import Run
    from sailplan.run.directory import RunDirectory
    from sailplan.run.finished import finished
    from sailplan.slurm.profile import settings_of
    from sailplan.slurm.submit import refuse_queued

    flags = [] if nodes is None else ["--launch.nodes", str(nodes)]
    asked = Run.from_file(find_run_file(run), [*context.args, *flags])
    kinds = _kinds(then)
    done = finished(asked)
    if done is not None:
        print(done, file=sys.stderr if dry_run else sys.stdout)
        kinds = kinds[1:]
        if not kinds:
            return
    settings = settings_of(asked, cluster)
    if not dry_run:
        refuse_queued(RunDirectory.of(asked))
    asked = on_cluster(RunDirectory.of(asked).pinned(asked), settings)
    if not no_preflight:
        check(asked)
    if settings.shared_cache:
        os.environ["HF_HOME"] = settings.shared_cache
    os.environ.update(asked.environment())
    if not no_fetch and not dry_run:
        asked = _fetch(asked)
    here = detect()
    found = submission(
        asked,
        settings,
        here,
        os.environ,
        kinds=kinds,
        offline=not no_fetch and not asked.get("push_to_hub"),
        refuse=not no_preflight,
    )
    for note in found.notes:
        # With --dry-run, standard output is for the scripts.
        print(note, file=sys.stderr if dry_run else sys.stdout, flush=True)
    if dry_run:
        _show(found)
        return
    if not no_preflight:
        before_launch(found.ready.run, found.node, plan=found.ready.plan, queued=True)
    _submit(found)


def _kinds(then: str) -> tuple[Kind, ...]:
    """Returns the jobs that are wanted, training first.

    Raises:
        RunFileError: Another is named, or one twice.
    """
    from sailplan.slurm.jobs import KINDS

    wanted = [word.strip() for word in then.split(",") if word.strip()]
    if sorted(set(wanted)) != sorted(wanted) or not set(wanted) <= set(KINDS[1:]):
        raise RunFileError(f"--then {then}", allowed="merge, compare, or merge,compare")
    return tuple(kind for kind in KINDS if kind == "train" or kind in wanted)


def _fetch(run: Run) -> Run:
    """Gets what the run needs of the hub, and returns it pinned.

    Raises:
        SailplanError: It cannot be had.
    """
    from sailplan import fetch as room
    from sailplan.run.directory import RunDirectory
    from sailplan.run.repositories import uses

    if not uses(run):
        return run
    pinned = room.pin_all(run)
    for fetched in room.fetch(pinned):
        print(fetched, flush=True)
    RunDirectory.of(pinned).remember(pinned)
    return pinned


def _scripts(found: Submission) -> dict[Path, str]:
    from sailplan.slurm.submit import script_of

    return {
        request.paths.job_script(request.kind): script_of(request) for request in found.requests
    }


def _show(found: Submission) -> None:
    for path, text in _scripts(found).items():
        print(f"# {path}\n{text}")
    for path, text in found.ready.launch.files.items():
        print(f"# {path}\n{text}")


def _submit(found: Submission) -> None:
    """Writes the scripts and what the launch reads, submits, and says what is where.

    Raises:
        SailplanError: The directory is another run's, or Slurm refuses; it is as it was then.
    """
    import shlex

    from sailplan.launcher.local import launch_texts
    from sailplan.run.directory import RunDirectory
    from sailplan.slurm.submit import enqueue, prove

    ready = found.ready
    directory = RunDirectory.of(ready.kept)
    texts = _scripts(found)
    trains = any(request.kind == "train" for request in found.requests)
    if trains:
        directory.check(ready.kept)
        texts |= launch_texts(ready.run, ready.launch, found.node, plan=ready.plan)
    try:
        directory.slurm.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {directory.slurm}: {error.strerror}") from None
    claim = directory.claim(ready.kept, texts)
    try:
        prove(found.requests, os.environ)
        jobs = enqueue(found.requests, os.environ)
    except BaseException:
        claim.take_back()
        raise
    for job in jobs:
        waits = f", after job {job.after}" if job.after else ""
        print(f"{job.kind}: job {job.job_id}{waits}\n  script {job.script}\n  log    {job.log}")
    name = shlex.quote(str(directory.path))
    print(f"follow it: sailplan logs -f {name}; stop it: sailplan cancel {name}")
