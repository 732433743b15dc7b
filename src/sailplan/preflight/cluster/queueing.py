"""Waits for the smoke job: says why it pends, and cancels it where it takes too long."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sailplan.errors import SlurmError
from sailplan.slurm.commands import slurm
from sailplan.slurm.queue import QueuedJob, look_up
from sailplan.slurm.reasons import in_words

LOOK_EVERY_S = 1.0

UNKNOWN_FOR_S = 60.0
"""So long the controller may be silent, or not know the job, before it is given up."""

NEVER = "never starts"
"""How what is said of a job begins that waits in vain."""


def wait(job_id: int, *, pend_s: float) -> QueuedJob | None:
    """Returns a job once it has ended, or pends for too long and so is cancelled.

    It is cancelled too where this is left by an exception, as by Ctrl-C.

    Args:
        job_id: The job.
        pend_s: How long it may pend.

    Returns:
        What Slurm knows of it last: while it still waits, that it has been cancelled; None where
        Slurm does not answer, or has forgotten it.
    """
    say = _Teller(job_id)
    try:
        return _wait(job_id, pend_s, say)
    except BaseException:
        cancel(job_id)
        raise


def _wait(job_id: int, pend_s: float, say: _Teller) -> QueuedJob | None:
    start = known_at = time.monotonic()
    while True:
        job = look_up([job_id]).jobs.get(job_id)
        now = time.monotonic()
        if job is None:
            if now - known_at > UNKNOWN_FOR_S:
                cancel(job_id)
                return None
        else:
            known_at = now
            say(job)
            if job.phase == "ended":
                return job
            if job.phase == "waiting" and (now - start > pend_s or _in_vain(job)):
                cancel(job_id)
                return job
        time.sleep(LOOK_EVERY_S)


def _in_vain(job: QueuedJob) -> bool:
    return in_words(job.reason).startswith(NEVER)


def cancel(job_id: int) -> None:
    """Cancels a job, if Slurm still answers."""
    with suppress(SlurmError):
        slurm("scancel", str(job_id))


class _Teller:
    """Says on standard error how a job stands, each time that this changes."""

    def __init__(self, job_id: int) -> None:
        self._job_id, self._said = job_id, ""

    def __call__(self, job: QueuedJob) -> None:
        if job.phase == "ended":
            return
        text = in_words(job.reason) if job.phase == "waiting" else f"runs on {job.nodes}"
        if text != self._said:
            self._said = text
            print(f"smoke job {self._job_id} {text}", file=sys.stderr, flush=True)


def look_again(folder: Path) -> None:
    """Has a network file system ask anew what a folder holds: one remembers it for up to a minute.

    Args:
        folder: One into which this user may write.
    """
    with suppress(OSError):
        handle, name = tempfile.mkstemp(dir=folder, prefix=".look-")
        os.close(handle)
        Path(name).unlink()


def until(found: Callable[[], bool], *, within_s: float) -> bool:
    """Looks again until something is so, or the time is over; says whether it is."""
    deadline = time.monotonic() + within_s
    while not found():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_EVERY_S)
    return True
