"""What a run prints: its job's log or a rank's, as it is, and as it grows until the run ends."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sailplan.errors import OutputError, RunFileError
from sailplan.run.paths import RunPaths
from sailplan.slurm.jobs import Kind
from sailplan.slurm.standing import JobStanding
from sailplan.supervise.jobs import JobWatch, training_of
from sailplan.supervise.lines import Growing, start_of_last
from sailplan.supervise.live import farewell
from sailplan.supervise.runs import RunSummary, look_at
from sailplan.terminal import harmless

EVERY_S = 0.5
"""So often a log that is followed is looked at."""

FOLLOWED_LINES = 20
"""So many lines of what is there are printed first where a log is followed."""

_COLOURS = re.compile(r"\x1b\[[0-9;:?]*[ -/]*[@-~]")
_LATER_S = 60.0
"""A rank's log that was written so much later than the job's is of a launch beside the job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Which log is meant."""

    rank: int | None = None
    """Of a rank; None where it is the job's, or the first rank's where there is no job."""
    kind: Kind | None = None
    """Of the last job of a kind; None where it is of training."""


def log_of(paths: RunPaths, jobs: tuple[JobStanding, ...], wanted: Wanted) -> Path:
    """Returns the file that is meant; it may not be there yet.

    Args:
        paths: The run's.
        jobs: How its jobs stand.
        wanted: Which log.

    Raises:
        RunFileError: The run has no such job.
    """
    first = paths.logs / f"rank-{wanted.rank or 0}.log"
    if wanted.rank is not None:
        return first
    if wanted.kind is not None:
        return Path(_job_of(jobs, wanted.kind).log)
    job = training_of(jobs)
    if job is None:
        return first
    log = Path(job.log)
    is_beside = job.is_over and _written_at(first) > _written_at(log) + _LATER_S
    return first if is_beside else log


def _job_of(jobs: tuple[JobStanding, ...], kind: Kind) -> JobStanding:
    for job in jobs:
        if job.kind == kind:
            return job
    there = ", ".join(job.kind for job in jobs)
    raise RunFileError(
        f"the run has no {kind} job",
        allowed=there,
        todo="" if there else "it was not submitted to Slurm",
    )


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def print_log(directory: Path, wanted: Wanted, *, num_lines: int | None) -> None:
    """Prints a log as it is now.

    Args:
        directory: The run's.
        wanted: Which log.
        num_lines: Only so many of its last lines; None prints all.

    Raises:
        RunFileError: The run has no such job.
        OutputError: There is nothing yet.
    """
    one = look_at(directory)
    paths = RunPaths(directory)
    path = log_of(paths, one.jobs, wanted)
    if not path.is_file():
        todo = _standing(one, wanted)
        raise OutputError(f"there is no {path} yet", allowed=_others(paths), todo=todo)
    for line in _lines(path, 0 if num_lines is None else start_of_last(path, num_lines)):
        print(shown(line))


def _others(paths: RunPaths) -> str:
    ranks = sorted(int(file.stem[5:]) for file in paths.logs.glob("rank-[0-9]*.log"))
    return f"ranks {ranks[0]} to {ranks[-1]}" if ranks else ""


def _lines(path: Path, start: int) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            file.seek(start)
            for line in file:
                yield line.decode("utf-8", "replace").removesuffix("\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be read ({error.strerror})") from None


def shown(line: str) -> str:
    """Returns a line as a terminal would have shown it last: bars leave their last state."""
    return harmless(_COLOURS.sub("", line).rstrip("\r").rpartition("\r")[2])


def follow_log(directory: Path, wanted: Wanted, *, num_lines: int = FOLLOWED_LINES) -> None:
    """Prints a log as it grows, until the run ends, or the job that is meant.

    How the run stands while there is nothing to print is said on standard error. A job that is
    queued again goes on in the same file; one that is submitted anew is followed in its own.

    Args:
        directory: The run's.
        wanted: Which log.
        num_lines: How many lines of what is there come first.

    Raises:
        RunFileError: The run has no such job.
    """
    paths = RunPaths(directory)
    jobs, growing, said = JobWatch(paths), None, ""
    with suppress(KeyboardInterrupt):
        while True:
            # The standing first: what comes after the last look at the log is no more of the run.
            one = look_at(directory, jobs.look())
            path = log_of(paths, one.jobs, wanted)
            if growing is None or growing.path != path:
                if growing is not None:
                    _say(f"==> {path} <==")
                growing = Growing(path, position=start_of_last(path, num_lines))
            for line in growing.new_lines():
                print(shown(line), flush=True)
            is_over = _is_over(one, wanted)
            now = _standing(one, wanted)
            if now != said and not is_over and (one.state == "queued" or not path.is_file()):
                _say(now)
            said = now
            if is_over:
                break
            time.sleep(EVERY_S)
        if growing.rest():
            print(shown(growing.rest()), flush=True)
        _say(farewell(one) if wanted.kind in (None, "train") else _standing(one, wanted))


def _is_over(one: RunSummary, wanted: Wanted) -> bool:
    if wanted.kind in (None, "train"):
        return one.is_over or one.state == "unknown"
    return _job_of(one.jobs, wanted.kind).state not in ("waiting", "running")


def _standing(one: RunSummary, wanted: Wanted) -> str:
    """Says how a run stands, or the job that is meant; without what changes all the time."""
    if wanted.kind not in (None, "train"):
        job = _job_of(one.jobs, wanted.kind)
        return f"{job.kind} {job.job_id}: {job.why or job.state}"
    why = f", {one.why}" if one.why else ""
    return f"{one.path.resolve().name}: {one.state}{why}"


def _say(line: str) -> None:
    print(harmless(line), file=sys.stderr, flush=True)
