"""How the jobs of a run stand, each in a line: the last submitted chain of train, merge, compare.

Slurm is asked first; of what it has forgotten, or does not answer, the jobs' own last words tell,
and what follows from them: a job after one that failed was cancelled.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sailplan.errors import StoppedError
from sailplan.run.paths import RunPaths
from sailplan.sizes import duration
from sailplan.slurm.jobs import KINDS, Job, JobEnd, Kind, end_of, jobs_of
from sailplan.slurm.queue import Lookup, QueuedJob, look_up
from sailplan.slurm.reasons import in_words

State = Literal["waiting", "running", "finished", "stopped", "failed", "cancelled", "unknown"]

OVER: Final[frozenset[State]] = frozenset({"finished", "stopped", "failed", "cancelled"})
"""A job that stands so does nothing more, unless somebody queues it again."""

_SOON_S = 90.0
_FAR_S = 30 * 86400.0
"""When a job is expected to start is said between these: Slurm's guess is a year at times."""

_NEVER = "DependencyNeverSatisfied"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStanding:
    """How one job of a run stands."""

    job_id: int
    kind: Kind
    state: State
    words: str
    """The same and why, as what is said of it."""
    why: str = ""
    """Why it ended as it did, or waits, alone; empty where there is nothing to say."""
    log: str
    """The file that it prints to."""
    submitted_at: float
    """In seconds since 1970."""
    after: int | None = None
    """The job before it; None where there is none."""
    slurm_state: str = ""
    """As Slurm has it, such as RUNNING; empty where Slurm does not know it."""
    nodes: str = ""
    """Those that it has or had; empty where it has had none."""
    restarts: int = 0
    """How often it was queued again."""
    started_at: float | None = None
    """When it last began, in seconds since 1970; None where it waits, or nobody knows."""
    ended_at: float | None = None
    """When it ended, in seconds since 1970; None where it has not, or nobody knows."""

    @property
    def line(self) -> str:
        """The job and how it stands."""
        return f"{self.kind} {self.job_id}: {self.words}"

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it, unless somebody queues it again."""
        return self.state in OVER


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """The jobs of a run that count, as they were submitted, and their own last words."""

    jobs: tuple[Job, ...] = ()
    ends: Mapping[int, JobEnd]
    """By id; of those that have said how they ended."""

    @property
    def asked(self) -> frozenset[int]:
        """The jobs of which Slurm may know more: all but those that have succeeded."""
        done = (job for job, end in self.ends.items() if end.exit_code == 0)
        return frozenset(job.job_id for job in self.jobs).difference(done)

    @property
    def silent(self) -> frozenset[int]:
        """The jobs that have not said how they ended."""
        return self.asked.difference(self.ends)


def read_chain(paths: RunPaths) -> Chain:
    """Returns the jobs of a run that count; none where there were none, and nothing is asked."""
    jobs = tuple(last_submitted(jobs_of(paths)))
    found = {job.job_id: end_of(paths, job.job_id) for job in jobs}
    return Chain(jobs=jobs, ends={job: end for job, end in found.items() if end is not None})


def look_up_all(chains: Iterable[Chain]) -> Lookup:
    """Asks Slurm once for all jobs of which it may know more."""
    chains = list(chains)
    asked = frozenset[int]().union(*(chain.asked for chain in chains))
    return look_up(asked, ever=frozenset[int]().union(*(chain.silent for chain in chains)))


def last_submitted(jobs: Iterable[Job]) -> Sequence[Job]:
    """Returns the last job of each kind, in a chain's order.

    One that was submitted before the last job of an earlier kind, and does not wait for it, is of
    another time and left out.

    Args:
        jobs: All of a run, the first one first.
    """
    newest = {job.kind: job for job in jobs}
    kept: list[Job] = []
    for job in (newest[kind] for kind in KINDS if kind in newest):
        follows = job.after in {before.job_id for before in kept}
        if follows or all(job.submitted_at >= before.submitted_at for before in kept):
            kept.append(job)
    return kept


def standings(chain: Chain, lookup: Lookup, *, now: float | None = None) -> tuple[JobStanding, ...]:
    """Returns how each job of a run stands. Pure.

    Args:
        chain: The jobs.
        lookup: What Slurm answers.
        now: Seconds since 1970; now where not given.
    """
    now = time.time() if now is None else now
    found: dict[int, JobStanding] = {}
    for job in chain.jobs:
        before = found.get(job.after) if job.after is not None else None
        queued, end = lookup.jobs.get(job.job_id), chain.ends.get(job.job_id)
        if queued is None:
            found[job.job_id] = _forgotten(job, before, end, lookup.trouble)
        elif queued.phase == "waiting":
            found[job.job_id] = _waits(job, before, queued, now)
        elif queued.phase == "active":
            found[job.job_id] = _runs(job, queued, now)
        else:
            found[job.job_id] = _ended(job, before, queued, end)
    return tuple(found.values())


def _waits(job: Job, before: JobStanding | None, queued: QueuedJob, now: float) -> JobStanding:
    why = in_words(queued.reason, again=queued.restarts > 0)
    if before is not None and queued.reason == _NEVER:
        why = f"never starts, since {_since(before)}"
    elif before is not None and _depends(queued, before):
        why = f"waits for {before.kind} ({before.job_id})"
    elif queued.started_at and _SOON_S < queued.started_at - now < _FAR_S:
        why += f"; Slurm expects it to start in {duration(queued.started_at - now)}"
    if queued.restarts:
        why += f" (queued again {_times(queued.restarts)})"
    return _standing(job, "waiting", why, why=why, queued=queued)


def _depends(queued: QueuedJob, before: JobStanding) -> bool:
    """Says whether a job waits for another; its reason may be another one for a moment."""
    waits_for_it = f":{before.job_id}(unfulfilled)" in queued.dependency
    return waits_for_it or queued.reason == "Dependency"


def _runs(job: Job, queued: QueuedJob, now: float) -> JobStanding:
    since = max(1.0, now - queued.started_at) if queued.started_at else None
    on = f" on {queued.nodes}" if queued.nodes else ""
    doing = {
        "COMPLETING": f"is ending{on}",
        "CONFIGURING": f"waits until its nodes are ready: {queued.nodes}",
        "SUSPENDED": f"is suspended{on}; `scontrol resume` lets it go on",
        "STOPPED": f"is suspended{on}",
    }.get(queued.state, f"running{on}{f' since {duration(since)}' if since else ''}")
    if queued.restarts:
        doing += f", started again {_times(queued.restarts)}"
    return _standing(job, "running", doing, queued=queued)


def _ended(
    job: Job, before: JobStanding | None, queued: QueuedJob, end: JobEnd | None
) -> JobStanding:
    """Returns how a job stands that Slurm knows to have ended."""
    if queued.state == "COMPLETED":
        return _standing(job, "finished", "finished", queued=queued, end=end)
    if queued.state == "CANCELLED" and end is None:
        return _cancelled(job, before, queued)
    if queued.state == "FAILED" and end is None and queued.exit_code == StoppedError.exit_code:
        end = JobEnd(exit_code=StoppedError.exit_code, ended_at=queued.ended_at or 0.0)
    if queued.state == "FAILED" and end is not None:
        return _by_its_own_word(job, end, queued)
    of = f" of {queued.time_limit}" if queued.time_limit else ""
    on = f" ({queued.nodes})" if queued.nodes else ""
    why = {
        "BOOT_FAIL": f"its nodes could not be made ready{on}",
        "CANCELLED": "it was cancelled",
        "DEADLINE": "its deadline was over",
        "NODE_FAIL": f"a node has failed{on}",
        "OUT_OF_MEMORY": f"it took more memory than it had asked for{on}",
        "PREEMPTED": "a job of a higher priority has taken its nodes",
        "REVOKED": "another cluster of the federation runs it",
        "TIMEOUT": f"its time{of} was over before it had stopped",
    }.get(queued.state) or _exit_words(queued)
    if end is not None and end.why:
        why += f"; its last word: {end.why}"
    state: State = "cancelled" if queued.state == "CANCELLED" else "failed"
    return _standing(job, state, f"{state}: {why}", why=why, queued=queued, end=end)


def _cancelled(job: Job, before: JobStanding | None, queued: QueuedJob) -> JobStanding:
    """Returns how a job stands that was cancelled before it could say anything."""
    is_left = before is not None and before.state in OVER - {"finished"}
    if before is not None and (queued.reason == _NEVER or (is_left and not queued.nodes)):
        why = f"since {_since(before)}"
        return _standing(job, "cancelled", f"cancelled, {why}", why=why, queued=queued)
    by = f" by user {queued.cancelled_by}" if queued.cancelled_by else ""
    when = "" if queued.nodes else " while it waited"
    why = f"it was cancelled{by}{when}"
    return _standing(job, "cancelled", f"cancelled{by}{when}", why=why, queued=queued)


def _forgotten(
    job: Job, before: JobStanding | None, end: JobEnd | None, trouble: str
) -> JobStanding:
    """Returns how a job stands of which Slurm says nothing."""
    if end is not None:
        return _by_its_own_word(job, end)
    if before is not None and before.state in OVER - {"finished"}:
        why = f"since {_since(before)}"
        return _standing(job, "cancelled", f"cancelled, {why}", why=why)
    if trouble:
        return _standing(job, "unknown", f"how it stands is not known: {trouble}", why=trouble)
    why = "Slurm does not know it any more, and it has left no word of its end"
    return _standing(job, "unknown", why, why=why)


def _by_its_own_word(job: Job, end: JobEnd, queued: QueuedJob | None = None) -> JobStanding:
    if end.exit_code == 0:
        return _standing(job, "finished", "finished", queued=queued, end=end)
    state: State = "stopped" if end.exit_code == StoppedError.exit_code else "failed"
    why = end.why or ("" if state == "stopped" else f"exit code {end.exit_code}")
    words = f"{state}: {why}" if why else state
    return _standing(job, state, words, why=why, queued=queued, end=end)


def _exit_words(queued: QueuedJob) -> str:
    if queued.signal is not None:
        return f"signal {queued.signal} has ended it"
    if queued.exit_code:
        return f"exit code {queued.exit_code}"
    return in_words(queued.reason)


def _since(before: JobStanding) -> str:
    """Says why a job that depends on another cannot start: `train (12) failed: …`."""
    has_its_own = before.state in ("failed", "stopped")
    did = "was cancelled" if before.state == "cancelled" else "did not succeed"
    own = f": {before.why}" if before.why and has_its_own else ""
    return f"{before.kind} ({before.job_id}) {before.state if has_its_own else did}{own}"


def _times(count: int) -> str:
    return f"{count} time{'s' * (count > 1)}"


def _standing(
    job: Job,
    state: State,
    words: str,
    *,
    why: str = "",
    queued: QueuedJob | None = None,
    end: JobEnd | None = None,
) -> JobStanding:
    has_begun = queued is not None and queued.phase != "waiting"
    is_over = queued is not None and queued.phase == "ended"
    ended_at = queued.ended_at if queued is not None and is_over else None
    return JobStanding(
        job_id=job.job_id,
        kind=job.kind,
        state=state,
        words=words,
        why=why,
        log=job.log,
        submitted_at=job.submitted_at,
        after=job.after,
        slurm_state=queued.state if queued is not None else "",
        nodes=queued.nodes if queued is not None else "",
        restarts=queued.restarts if queued is not None else 0,
        started_at=queued.started_at if queued is not None and has_begun else None,
        ended_at=ended_at or (end.ended_at if end is not None else None),
    )
