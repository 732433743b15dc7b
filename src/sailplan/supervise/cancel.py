"""Ends a run as a user wants: saved and stopped, or at once; with all jobs that follow it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sailplan.errors import OutputError, SlurmError
from sailplan.run.paths import RunPaths
from sailplan.run.state import RunState, read_state
from sailplan.slurm.commands import slurm
from sailplan.slurm.jobs import write_cancelled
from sailplan.slurm.standing import JobStanding, look_up_all, read_chain, standings
from sailplan.supervise.alive import is_here, lives
from sailplan.supervise.jobs import JobWatch, training_of
from sailplan.supervise.live import farewell
from sailplan.supervise.runs import RunSummary, look_at
from sailplan.supervise.shown import again_by

EVERY_S = 0.5
"""So often it is looked whether a run has ended."""

_GONE = ("Invalid job id", "already completing or completed")
"""What scancel says of jobs that have ended meanwhile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancelled:
    """What was done."""

    lines: tuple[str, ...]
    """What was done, a line each; at least one."""
    has_to_end: bool
    """Whether something of the run goes on for a while: it saves, or is being ended."""


def cancel(directory: Path, *, at_once: bool) -> Cancelled:
    """Ends a run: asks one that trains to save and to stop, and takes its waiting jobs away.

    It does not wait for the end.

    Args:
        directory: The run's.
        at_once: End it without saving.

    Raises:
        SlurmError: The run has jobs, and Slurm does not answer or refuses.
        OutputError: The run's directory cannot be written, or its processes cannot be ended here.
    """
    paths = RunPaths(directory)
    chain = read_chain(paths)
    lookup = look_up_all([chain])
    jobs = standings(chain, lookup)
    if lookup.trouble and any(not job.is_over for job in jobs):
        raise SlurmError(lookup.trouble, todo="how the run's jobs stand is not known")
    one = look_at(directory, jobs)
    training, lines = training_of(jobs), []
    if training is not None and training.state == "running" and not at_once:
        _mark(paths, training.job_id)
        lines = [_ask(paths), f"train {training.job_id} then ends, and is not queued again"]
    elif one.state in ("starting", "running") and _is_beside(training):
        lines = [_end_processes(paths, one) if at_once else _ask(paths)]
    lines += _end_jobs(paths, jobs, at_once=at_once)
    if not lines:
        return Cancelled(lines=(f"there is nothing to cancel: {_how(one)}",), has_to_end=False)
    lines.append(f"`{again_by(one)}` goes on with the run")
    return Cancelled(lines=tuple(lines), has_to_end=True)


def _is_beside(training: JobStanding | None) -> bool:
    """Says whether a run that trains does so without a job."""
    return training is None or training.state not in ("waiting", "running")


def _how(one: RunSummary) -> str:
    return farewell(one) if one.is_over else f"{one.state}{f', {one.why}' if one.why else ''}"


def _end_jobs(paths: RunPaths, jobs: tuple[JobStanding, ...], *, at_once: bool) -> Iterator[str]:
    """Takes jobs away, but for a training job that is to save; yields what is said of them.

    The last one goes first: none sees the one before it gone.
    """
    ends = [
        job
        for job in jobs
        if job.state == "waiting" or (job.state == "running" and (at_once or job.kind != "train"))
    ]
    for job in ends:
        if job.kind == "train":
            _mark(paths, job.job_id)
    for job in reversed(ends):
        try:
            slurm("scancel", str(job.job_id))
        except SlurmError as error:
            if not any(word in error.got for word in _GONE):
                raise
    for job in ends:
        did = "waited" if job.state == "waiting" else "was running"
        yield f"cancelled {job.kind} {job.job_id}, which {did}"


def _mark(paths: RunPaths, job_id: int) -> None:
    try:
        write_cancelled(paths, job_id)
    except OSError as error:
        raise _unwritten(paths, error) from None


def _ask(paths: RunPaths) -> str:
    """Asks the ranks to save and to stop, as any who makes their stop file does."""
    was_asked = paths.stop_file.exists()
    try:
        paths.stop_file.touch()
    except OSError as error:
        raise _unwritten(paths, error) from None
    did = "had been asked" if was_asked else "is asked"
    return f"the run {did} to save and to stop ({paths.stop_file})"


def _unwritten(paths: RunPaths, error: OSError) -> OutputError:
    return OutputError(
        f"{paths.path} cannot be written ({error.strerror})",
        todo="a run is cancelled by who may write in its directory",
    )


def _end_processes(paths: RunPaths, one: RunSummary) -> str:
    """Ends the processes of a run that trains on this machine."""
    state = read_state(paths.state_file)
    if state is None or not is_here(state):
        raise OutputError(
            f"the run's processes are on {one.host or 'another machine'}",
            todo=f"call it there, or `touch {paths.stop_file}` to have it save and stop",
        )
    if not lives(state):
        return f"process {state.pid} had ended"
    try:
        return _signal(state)
    except ProcessLookupError:
        return f"process {state.pid} had ended"
    except PermissionError:
        who = "its user can" if os.getuid() else "nobody can"
        raise OutputError(f"process {state.pid} is another user's", todo=who) from None


def _signal(state: RunState) -> str:
    """Sends what ends the ranks at once, whoever started them."""
    if state.launcher is None:
        os.kill(state.pid, signal.SIGKILL)
        return f"killed process {state.pid}, the first rank; its launcher ends the others"
    # A launcher passes the first signal on and kills at the second; of two that are alike, it might
    # see one.
    os.kill(state.launcher, signal.SIGTERM)
    os.kill(state.launcher, signal.SIGINT)
    return f"had process {state.launcher}, its launcher, kill the ranks"


def wait_for_end(directory: Path) -> str:
    """Returns how a run has ended, when it and all its jobs have.

    Args:
        directory: The run's.
    """
    jobs = JobWatch(RunPaths(directory))
    while True:
        one = look_at(directory, jobs.look())
        if one.state not in ("queued", "starting", "running") and all(
            job.state not in ("waiting", "running") for job in one.jobs
        ):
            return farewell(one)
        time.sleep(EVERY_S)
