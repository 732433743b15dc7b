"""`sailplan job`: what the scripts of Slurm jobs call; not for the command line."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sailplan.slurm.inside import Inside


def job(
    moment: Annotated[str, typer.Argument(help="begin or end.")],
    kind: Annotated[str, typer.Argument(help="train, merge or compare.")],
    directory: Annotated[Path, typer.Argument(help="The run's.")],
    code: Annotated[int, typer.Argument(help="What the work exited with.")] = 0,
    asked: Annotated[str, typer.Argument(help="Anything, where Slurm asked the job to stop.")] = "",
    max_restarts: Annotated[
        int,
        typer.Option("--max-restarts", min=0, help="Of a run that fails without coming further."),
    ] = 3,
) -> None:
    """Is called by the script of a Slurm job before its work and after it.

    For training it prints one word: before, the number of the launch, or finished; after, what
    comes next.
    """
    from sailplan.errors import RunFileError
    from sailplan.slurm.inside import inside

    if moment not in ("begin", "end"):
        raise RunFileError(f"sailplan job {moment}", allowed="begin or end")
    here = inside(kind, directory, os.environ)
    # What is told belongs into the log; the script reads the word.
    with redirect_stdout(sys.stderr):
        if here.kind != "train":
            word = _note(here, moment, code)
        elif moment == "begin":
            word = _before_training(here, max_restarts)
        else:
            word = _after_training(here, max_restarts, code, asked=bool(asked))
    if word:
        print(word)


def _note(here: Inside, moment: str, code: int) -> str:
    if moment == "begin":
        here.begin()
    else:
        here.end(code, here.last_error() if code else "")
    return ""


def _before_training(here: Inside, max_restarts: int) -> str:
    """Settles what the launch before left, and returns the number of this one, or `finished`.

    Raises:
        SailplanError: There is to be none.
    """
    from sailplan.errors import SailplanError, StoppedError
    from sailplan.run.config import Run
    from sailplan.run.finished import finished
    from sailplan.supervise.job import TrainingJob

    here.begin()
    if here.is_cancelled:  # while Slurm queued it again
        here.end(StoppedError.exit_code, "cancelled")
        raise StoppedError("job cancelled", todo="`sailplan submit` goes on with the run")
    run = Run.from_file(here.paths.run_file)
    done = finished(run)
    if done is not None:
        print(done)
        here.end(0)
        return "finished"
    try:
        return str(TrainingJob.of(run, here, max_restarts=max_restarts).begin())
    except SailplanError as error:
        here.end(error.exit_code, str(error))
        raise


def _after_training(here: Inside, max_restarts: int, code: int, *, asked: bool) -> str:
    """Judges how a launch ended, and returns what comes next.

    Raises:
        SailplanError: The next launch cannot be made ready.
    """
    from sailplan.errors import SailplanError
    from sailplan.hardware.detect import detect
    from sailplan.preflight.ready import preparing
    from sailplan.run.config import Run
    from sailplan.run.state import read_state
    from sailplan.supervise.attempt_log import settled_before
    from sailplan.supervise.attempts import Attempts
    from sailplan.supervise.job import TrainingJob

    run = Run.from_file(here.paths.run_file)
    machine = detect()
    attempts = Attempts(
        prepare=preparing(run, machine, os.environ, port=lambda: None, refuse=False),
        machine=machine,
        environment=os.environ,
        run_file=str(here.paths.path),
        asked=run,
        changed=settled_before(run, machine)[0],
    )
    training = TrainingJob.of(run, here, max_restarts=max_restarts)
    try:
        # What a user wants to end does not come back, whoever else has asked it to stop.
        word = training.end(attempts, code, asked=asked and not here.is_cancelled)
    except SailplanError as error:
        here.end(error.exit_code, str(error))
        raise
    if word in ("finished", "stopped", "failed"):
        state = read_state(here.paths.state_file)
        here.end((state.exit_code or 0) if state else code, state.why if state else "")
    return word
