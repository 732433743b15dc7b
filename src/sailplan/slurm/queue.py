"""What Slurm knows of jobs: those that wait, run or have just ended, and older ones.

The controller knows each job until `MinJobAge` after its end (five minutes, unless the cluster says
otherwise); `squeue` asks it once for all. Where there is accounting, `sacct` knows of all later.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from sailplan.errors import SlurmError
from sailplan.slurm.commands import slurm

TIMEOUT_S = 5.0
"""Who looks at runs waits no longer for Slurm."""

Phase = Literal["waiting", "active", "ended"]

_LONG: Final = {
    **{"BF": "BOOT_FAIL", "CA": "CANCELLED", "CD": "COMPLETED", "CF": "CONFIGURING"},
    **{"CG": "COMPLETING", "DL": "DEADLINE", "F": "FAILED", "NF": "NODE_FAIL"},
    **{"OOM": "OUT_OF_MEMORY", "PD": "PENDING", "PR": "PREEMPTED", "R": "RUNNING"},
    **{"RD": "RESV_DEL_HOLD", "RF": "REQUEUE_FED", "RH": "REQUEUE_HOLD", "RQ": "REQUEUED"},
    **{"RS": "RESIZING", "RV": "REVOKED", "SE": "SPECIAL_EXIT", "SI": "SIGNALING"},
    **{"SO": "STAGE_OUT", "ST": "STOPPED", "S": "SUSPENDED", "TO": "TIMEOUT"},
}
"""The states in long by their compact form."""

_WAITING = frozenset(
    {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
)
_ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"}
    | {"OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}
)

_SEPARATOR = "\x1f"
"""Stands in nothing that Slurm lets anybody write."""
_QUEUE_FIELDS = (
    *("JobID", "State", "Reason", "NodeList", "RestartCnt", "exit_code"),
    *("StartTime", "EndTime", "TimeLimit", "Dependency", "Partition"),
)
_HISTORY_FIELDS = "JobIDRaw,State,ExitCode,NodeList,Start,End,Timelimit,Partition"
_NOTHING = frozenset({"", "(null)", "N/A", "None", "NONE", "Unknown", "None assigned"})
_BY = re.compile(r"\bby (\S+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuedJob:
    """A job as Slurm knows it."""

    job_id: int
    state: str
    """In long and in capitals, such as RUNNING."""
    reason: str = ""
    """Why it is in this state, as Slurm writes it; may be empty."""
    nodes: str = ""
    """Those that it has, or had last, such as node[1-2]; empty where it has had none."""
    restarts: int = 0
    """How often it was queued again."""
    exit_code: int | None = None
    """Of the script; None where it was ended by a signal, or accounting does not know."""
    signal: int | None = None
    """The signal that ended it; None where there was none."""
    started_at: float | None = None
    """In seconds since 1970; of a job that waits, when Slurm expects it to start."""
    ended_at: float | None = None
    """In seconds since 1970; of a job that has not ended, when its time is over."""
    time_limit: str = ""
    """As Slurm writes it, such as 8:00:00."""
    dependency: str = ""
    """What it waits for, such as afterok:12(unfulfilled)."""
    partition: str = ""
    cancelled_by: str = ""
    """A user's number; empty where nobody has cancelled it, or only the controller was asked."""

    @property
    def phase(self) -> Phase:
        """Whether it waits, holds nodes, or has ended; of a state that is new to us, the second."""
        if self.state in _WAITING:
            return "waiting"
        return "ended" if self.state in _ENDED else "active"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lookup:
    """What Slurm answers."""

    jobs: Mapping[int, QueuedJob] = field(default_factory=dict)
    """By id; jobs that it does not know, or not any more, are not among them."""
    trouble: str = ""
    """Why nothing is known, in a clause; empty where Slurm has answered."""


def look_up(job_ids: Collection[int], *, ever: Collection[int] = ()) -> Lookup:
    """Returns what Slurm knows of jobs; never raises, and takes seconds at most.

    Args:
        job_ids: All that are asked for, of any number of runs.
        ever: Those of them that accounting is asked for, where there is any, when the controller
            no longer knows them.
    """
    if not job_ids:
        return Lookup()
    try:
        jobs = _queue(job_ids)
    except SlurmError as error:
        return Lookup(trouble=error.got)
    forgotten = set(ever) - jobs.keys()
    return Lookup(jobs={**jobs, **(_history(forgotten) if forgotten else {})})


def _queue(job_ids: Collection[int]) -> dict[int, QueuedJob]:
    wanted = ",".join(map(str, sorted(job_ids)))
    fields = ",".join(f"{name}:{_SEPARATOR}" for name in _QUEUE_FIELDS)
    options = ("--noheader", "--all", "--states=all", f"--jobs={wanted}", f"--Format={fields}")
    try:
        told = slurm("squeue", *options, environment=_environment(), timeout_s=TIMEOUT_S)
    except SlurmError as error:
        if "Invalid job id" in error.got:  # so it answers where the only one is not known
            return {}
        raise
    return {job.job_id: job for job in read_queue(told) if job.job_id in job_ids}


def _history(job_ids: Collection[int]) -> dict[int, QueuedJob]:
    """Returns what accounting knows of jobs; nothing where there is none."""
    wanted = ",".join(map(str, sorted(job_ids)))
    options = ("--noheader", "--parsable2", "--allocations", f"--format={_HISTORY_FIELDS}")
    try:
        told = slurm(
            *("sacct", *options, f"--jobs={wanted}"),
            environment=_environment(),
            timeout_s=TIMEOUT_S,
        )
    except SlurmError:
        return {}
    # What accounting has as running, and the controller does not know, has not been told to it.
    found = (job for job in read_history(told) if job.phase == "ended")
    return {job.job_id: job for job in found if job.job_id in job_ids}


def _environment() -> dict[str, str]:
    """Returns this process's variables, but for what a user's own would leave out or turn round."""
    own = ("SQUEUE_", "SACCT_", "SLURM_TIME_FORMAT")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return {**kept, "SLURM_TIME_FORMAT": "%s"}


def read_queue(told: str) -> Iterator[QueuedJob]:
    """Yields the jobs that `squeue` has printed; a line that is not one of them is left out."""
    for line in told.split("\n"):
        values = [value.strip() for value in line.split(_SEPARATOR)]
        if len(values) <= len(_QUEUE_FIELDS) or not values[0].isdecimal():
            continue
        found = dict(zip(_QUEUE_FIELDS, values, strict=False))
        state = long_state(found["State"])
        exit_code, signal = _status(found["exit_code"])
        yield QueuedJob(
            job_id=int(found["JobID"]),
            state=state,
            reason=_text(found["Reason"]),
            nodes=_text(found["NodeList"]),
            restarts=int(found["RestartCnt"]) if found["RestartCnt"].isdecimal() else 0,
            exit_code=exit_code,
            signal=signal,
            started_at=_time(found["StartTime"]),
            ended_at=_time(found["EndTime"]),
            time_limit=_text(found["TimeLimit"]),
            dependency=_text(found["Dependency"]),
            partition=_text(found["Partition"]),
        )


def read_history(told: str) -> Iterator[QueuedJob]:
    """Yields the jobs that `sacct` has printed; a line that is not one of them is left out."""
    names = _HISTORY_FIELDS.split(",")
    for line in told.split("\n"):
        values = [value.strip() for value in line.split("|")]
        if len(values) != len(names) or not values[0].isdecimal():
            continue
        found = dict(zip(names, values, strict=True))
        exit_code, signal = _status(found["ExitCode"])
        who = _BY.search(found["State"])
        yield QueuedJob(
            job_id=int(found["JobIDRaw"]),
            state=long_state(found["State"]),
            nodes=_text(found["NodeList"]),
            exit_code=exit_code,
            signal=signal,
            started_at=_time(found["Start"]),
            ended_at=_time(found["End"]),
            time_limit=_text(found["Timelimit"]),
            partition=_text(found["Partition"]),
            cancelled_by=who[1] if who else "",
        )


def long_state(state: str) -> str:
    """Returns a state's one word in long: of CG, of COMPLETING, of `CANCELLED by 0`, of FAILED+."""
    word = state.split()[0].rstrip("+").upper() if state.split() else ""
    return _LONG.get(word, word)


def _status(value: str) -> tuple[int | None, int | None]:
    """Returns an exit code and a signal: of `3:0`, and of a raw wait status as squeue has it."""
    code, colon, signal = value.partition(":")
    if not code.isdecimal() or (colon and not signal.isdecimal()):
        return None, None
    if colon:
        return (None, int(signal)) if int(signal) else (int(code), None)
    raw = int(code)
    return (None, raw & 0x7F) if raw & 0x7F else (raw >> 8, None)


def _text(value: str) -> str:
    return "" if value in _NOTHING else value


def _time(value: str) -> float | None:
    return float(value) if value.isdecimal() and int(value) else None
