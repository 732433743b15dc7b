"""A run's jobs in Slurm, and what its training job says of the run beside the run's own files.

The files of a run on another machine tell of a sudden end only by their silence. Slurm knows at
once: of a job that waits, that runs whatever the files say, and of one that it has ended.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sailplan.run.failure import read_failures
from sailplan.run.paths import RunPaths
from sailplan.run.state import RunState, read_state
from sailplan.slurm.queue import Lookup
from sailplan.slurm.standing import Chain, JobStanding, look_up_all, read_chain, standings
from sailplan.supervise.alive import is_here, lives
from sailplan.supervise.stands import Standing

ASK_EVERY_S = 5.0
"""Who follows a run asks Slurm so often: its controller serves many."""

ASK_SOON_S = 1.0
"""And so often for the moment in which it is decided what becomes of a job."""

ASK_AGAIN_S = 30.0
"""And so often where it has not answered."""


def training_of(jobs: Sequence[JobStanding]) -> JobStanding | None:
    """Returns the job that trains; None where the run was not submitted to Slurm."""
    return next((job for job in jobs if job.kind == "train"), None)


def beside_files(
    paths: RunPaths,
    state: RunState | None,
    by_files: tuple[Standing, str],
    jobs: Sequence[JobStanding],
) -> tuple[Standing, str]:
    """Returns in what state a run is, and why, by its files and its jobs together.

    Args:
        paths: The run's.
        state: What it last said of itself.
        by_files: In what state it is by its files alone, and why.
        jobs: How its jobs stand; none where it was not submitted to Slurm.
    """
    job = training_of(jobs)
    if job is None or _is_beside(state, job):
        return by_files
    if job.state == "waiting":
        return "queued", f"train {job.job_id} {job.words}{_before(paths, state)}"
    if job.state == "running":
        return _while_it_runs(paths, state, by_files, job)
    return _after_it(paths, state, by_files, job) if job.is_over else by_files


def _is_beside(state: RunState | None, job: JobStanding) -> bool:
    """Says whether the run was launched beside its job: by hand, here or after the job's end."""
    if state is None:
        return False
    if job.is_over and job.ended_at is not None and state.started_at > job.ended_at:
        return True
    return state.state in ("starting", "running") and is_here(state) and lives(state)


def _while_it_runs(
    paths: RunPaths, state: RunState | None, by_files: tuple[Standing, str], job: JobStanding
) -> tuple[Standing, str]:
    if state is None:
        return "starting", ""
    if state.state in ("starting", "running"):
        return state.state, state.why
    if state.state != "finished" and _is_older(state, job):
        return "starting", _before(paths, state).removeprefix("; ")
    return by_files


def _after_it(
    paths: RunPaths, state: RunState | None, by_files: tuple[Standing, str], job: JobStanding
) -> tuple[Standing, str]:
    """Returns how a run stands whose training job is over."""
    told = f"train {job.job_id} {job.words}"
    if state is not None and state.state == "finished":
        return by_files
    has_its_own_end = state is not None and state.state in ("stopped", "failed")
    if state is not None and has_its_own_end and not _is_older(state, job):
        # Of a run that was to go on, what has become of its job is the news.
        is_news = state.state == "stopped" and job.state in ("cancelled", "failed")
        is_news = is_news and job.slurm_state != "FAILED"
        return (state.state, told) if is_news else by_files
    if job.state == "finished":
        return by_files if state is None else ("killed", f"{told}, and the run did not")
    if state is None or job.state == "stopped" or has_its_own_end:
        return ("failed" if job.state == "failed" else "stopped"), told + _first_error(paths, job)
    by_itself = job.state == "failed" and job.slurm_state in ("", "FAILED")
    return ("failed" if by_itself else "killed"), told + _first_error(paths, job)


def _is_older(state: RunState, job: JobStanding) -> bool:
    """Says whether the run's last word came before its job last began."""
    return job.started_at is not None and state.updated_at < job.started_at


def _before(paths: RunPaths, state: RunState | None) -> str:
    """Returns what went wrong before the job was queued again; empty where nothing did."""
    if state is None or state.state == "finished":
        return ""
    why = state.why if state.state == "failed" else ""
    if state.state != "stopped":
        why = why or first_error(paths, since=state.started_at)
    return f"; before: {why}" if why else ""


def _first_error(paths: RunPaths, job: JobStanding) -> str:
    found = first_error(paths, since=job.started_at or job.submitted_at)
    return f"; {found}" if found and found not in job.words else ""


def first_error(paths: RunPaths, *, since: float) -> str:
    """Returns the first real error that a rank has left, in a line; empty where there is none.

    Args:
        paths: The run's.
        since: Seconds since 1970; what was left before is of another launch.
    """
    left = [one for one in read_failures(paths.failures) if one.time >= since and not one.is_echo]
    if not left or left[0].kind == "stopped":
        return ""
    first = left[0]
    error = " ".join(first.error.split())
    if first.kind in ("user", "hang"):
        return error
    did = f"was ended by {error}" if first.kind == "signal" else f"failed: {error}"
    return f"rank {first.rank} {did}"


@dataclass(slots=True)
class JobWatch:
    """Follows the jobs of one run; Slurm is asked now and then."""

    paths: RunPaths
    _chain: Chain | None = None
    _lookup: Lookup = field(default_factory=Lookup)
    _asked_at: float = 0.0
    _has_trouble: bool = False

    def look(self) -> tuple[JobStanding, ...]:
        """Returns how the jobs stand; Slurm's last answer counts for some seconds."""
        chain = read_chain(self.paths)
        if not chain.jobs:
            return ()
        found = standings(chain, self._lookup)
        is_new = chain != self._chain  # a job has been submitted, has begun again or has ended
        every_s = ASK_SOON_S if self._is_decided_soon(found) else ASK_EVERY_S
        since_s = time.monotonic() - self._asked_at
        if is_new or since_s >= (ASK_AGAIN_S if self._has_trouble else every_s):
            answer = look_up_all([chain])
            if not answer.trouble or not self._lookup.jobs:  # else its last word is the best
                self._lookup = answer
            self._has_trouble, self._asked_at = bool(answer.trouble), time.monotonic()
            found = standings(chain, self._lookup)
        self._chain = chain
        return found

    def _is_decided_soon(self, found: Sequence[JobStanding]) -> bool:
        """Says whether the ranks have left a job that has not ended: it may be queued again."""
        job = training_of(found)
        if job is None or job.state != "running":
            return False
        state = read_state(self.paths.state_file)
        return state is not None and state.state in ("stopped", "failed")
