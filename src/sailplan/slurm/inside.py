"""The job that this process is in, by the variables that Slurm sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sailplan.errors import SlurmError
from sailplan.run.paths import RunPaths
from sailplan.slurm.jobs import (
    KINDS,
    Job,
    JobEnd,
    Kind,
    forget_end,
    has_job,
    is_cancelled,
    write_end,
    write_job,
)

_ERROR = "error: "
_TAIL_BYTES = 16 * 2**10
"""What is read of a log's end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inside:
    """A job, as it sees itself."""

    kind: Kind
    paths: RunPaths
    """Of the run that it works for."""
    job_id: int
    num_restarts: int
    """How often Slurm has started it again."""

    def begin(self) -> None:
        """Says that the job is there, where nobody has, and that it has not ended.

        Raises:
            OSError: The run's directory cannot be written.
        """
        forget_end(self.paths, self.job_id)
        if not has_job(self.paths, self.job_id):
            script = str(self.paths.job_script(self.kind))
            log = str(self.paths.job_log(self.kind, self.job_id))
            write_job(self.paths, Job(job_id=self.job_id, kind=self.kind, script=script, log=log))

    def end(self, exit_code: int, why: str = "") -> None:
        """Says how the job ended.

        Raises:
            OSError: The run's directory cannot be written.
        """
        write_end(self.paths, self.job_id, JobEnd(exit_code=exit_code, why=why))

    @property
    def is_cancelled(self) -> bool:
        """Whether a user wants it to end for good."""
        return is_cancelled(self.paths, self.job_id)

    def last_error(self) -> str:
        """Returns the last error that its work has printed, in a line; empty where it has none."""
        try:
            with self.paths.job_log(self.kind, self.job_id).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
        return errors[-1] if errors else ""


def inside(kind: str, directory: Path, environment: Mapping[str, str]) -> Inside:
    """Returns the job that a process with these variables is in.

    Args:
        kind: What it does for the run.
        directory: The run's.
        environment: The variables.

    Raises:
        SlurmError: It is in none, or there is no such kind.
    """
    known = next((one for one in KINDS if one == kind), None)
    if known is None:
        raise SlurmError(f"no kind of job {kind!r}", allowed=", ".join(KINDS))
    job_id = environment.get("SLURM_JOB_ID", "")
    if not job_id.isdecimal():
        raise SlurmError(
            f"SLURM_JOB_ID is {job_id!r}: this is no job of Slurm",
            todo="`sailplan submit` makes one, or sbatch with a script of a run's slurm/ folder",
        )
    return Inside(
        kind=known,
        paths=RunPaths(directory.absolute()),
        job_id=int(job_id),
        num_restarts=int(environment.get("SLURM_RESTART_COUNT") or 0),
    )
