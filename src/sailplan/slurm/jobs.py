"""Which jobs a run has had: small files in its directory, each with one writer.

Whoever submits a job writes that there is one, and the job itself how it ended. A job that was
submitted by hand says itself that it is there. No file is written by two, and none is locked: the
directory may lie on any network file system.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeVar, get_args

from sailplan.files import write_atomically
from sailplan.records import from_json, to_json
from sailplan.run.paths import RunPaths

T = TypeVar("T")

Kind = Literal["train", "merge", "compare"]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
"""In the order of a chain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job of a run, as it was submitted."""

    job_id: int
    kind: Kind
    script: str
    """Its file."""
    log: str
    """The file that it prints to."""
    after: int | None = None
    """The job that must succeed before; None where there is none."""
    cluster: str = ""
    """The profile's name; empty where there was none."""
    submitted_at: float = field(default_factory=time.time)
    """In seconds since 1970; of a job that was submitted by hand, when it began."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEnd:
    """How a job ended, in its own words."""

    exit_code: int
    why: str = ""
    """In a line; may be empty."""
    ended_at: float = field(default_factory=time.time)


def jobs_of(paths: RunPaths) -> list[Job]:
    """Returns the jobs of a run, the first one first; files that cannot be read are left out."""
    found = [job for path in _files(paths) if (job := _read(path, Job)) is not None]
    return sorted(found, key=lambda job: (job.submitted_at, job.job_id))


def _files(paths: RunPaths) -> Iterator[Path]:
    if paths.jobs.is_dir():
        yield from (path for path in paths.jobs.glob("*.json") if path.stem.isdecimal())


def write_job(paths: RunPaths, job: Job) -> None:
    """Writes down that there is a job.

    Raises:
        OSError: It cannot be written.
    """
    _write(paths.jobs / f"{job.job_id}.json", job)


def has_job(paths: RunPaths, job_id: int) -> bool:
    """Says whether a job is written down."""
    return (paths.jobs / f"{job_id}.json").is_file()


def write_end(paths: RunPaths, job_id: int, end: JobEnd) -> None:
    """Writes down how a job ended; in that job alone.

    Raises:
        OSError: It cannot be written.
    """
    _write(paths.jobs / f"{job_id}.end.json", end)


def forget_end(paths: RunPaths, job_id: int) -> None:
    """Takes back how a job ended, since it is started again; in that job alone."""
    with suppress(OSError):
        (paths.jobs / f"{job_id}.end.json").unlink(missing_ok=True)


def end_of(paths: RunPaths, job_id: int) -> JobEnd | None:
    """Returns how a job ended; None where it has not, or could not tell."""
    return _read(paths.jobs / f"{job_id}.end.json", JobEnd)


def write_cancelled(paths: RunPaths, job_id: int) -> None:
    """Writes down that a user wants a job to end for good; it is not to be queued again.

    The job's script cannot tell by itself who has asked the ranks to stop: a user, or Slurm.

    Raises:
        OSError: It cannot be written.
    """
    paths.jobs.mkdir(parents=True, exist_ok=True)
    (paths.jobs / f"{job_id}.cancelled").touch()


def is_cancelled(paths: RunPaths, job_id: int) -> bool:
    """Says whether a user wants a job to end for good."""
    return (paths.jobs / f"{job_id}.cancelled").exists()


def _write(path: Path, record: Job | JobEnd) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(to_json(record), indent=2) + "\n").encode())


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return from_json(kind, json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, LookupError):
        return None
