"""Puts the jobs of a run into the queue, each after the one before; all of them, or none."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from sailplan.errors import SlurmError
from sailplan.run.paths import RunPaths
from sailplan.slurm.commands import sbatch, slurm, try_out
from sailplan.slurm.jobs import Job, jobs_of, write_job
from sailplan.slurm.profile import template_of
from sailplan.slurm.queue import look_up
from sailplan.slurm.script import JobRequest, render


def refuse_queued(paths: RunPaths) -> None:
    """Refuses a run that has a job in the queue, or running: two would train in one directory.

    Raises:
        SlurmError: It has.
    """
    found = look_up([job.job_id for job in jobs_of(paths)]).jobs.values()
    there = next((job for job in found if job.phase != "ended"), None)
    if there is not None:
        raise SlurmError(
            f"job {there.job_id} of {paths.path} is {there.state}",
            todo=f"follow it: sailplan logs -f {shlex.quote(str(paths.path))}; or `sailplan "
            "cancel` it first",
        )


def script_of(request: JobRequest) -> str:
    """Returns a job's script; a user's own template is for training alone.

    Raises:
        RunFileError: The template cannot be read, or is none.
    """
    own = template_of(request.settings) if request.kind == "train" else None
    return render(request, template=own)


def prove(requests: Sequence[JobRequest], environment: Mapping[str, str]) -> None:
    """Asks Slurm whether it would take the scripts, which are written, without submitting them.

    Raises:
        SlurmError: It would not.
    """
    for request in requests:
        script = request.paths.job_script(request.kind)
        try:
            try_out(script, environment=environment)
        except SlurmError as error:
            got = f"Slurm would not take the {request.kind} job: {error.got}"
            raise SlurmError(got, todo=f"see {script}; its options come from `slurm:`") from None


def enqueue(requests: Sequence[JobRequest], environment: Mapping[str, str]) -> list[Job]:
    """Submits jobs whose scripts are written, each to begin when the one before has succeeded.

    Args:
        requests: The jobs, in order.
        environment: What they find in their environment.

    Raises:
        SlurmError: Slurm refuses one; those before it are cancelled.
        OSError: The run's directory cannot be written; the same.
    """
    jobs: list[Job] = []
    try:
        for request in requests:
            jobs.append(_enqueue(request, jobs[-1].job_id if jobs else None, environment))
    except BaseException:
        for job in jobs:
            with suppress(SlurmError):
                slurm("scancel", str(job.job_id))
                print(f"cancelled job {job.job_id}", file=sys.stderr)
        raise
    return jobs


def _enqueue(request: JobRequest, after: int | None, environment: Mapping[str, str]) -> Job:
    # What waits for a job that has failed would wait for ever.
    waits = ("--kill-on-invalid-dep=yes", f"--dependency=afterok:{after}") if after else ()
    script = request.paths.job_script(request.kind)
    job_id = sbatch(script, options=waits, environment=environment)
    job = Job(
        job_id=job_id,
        kind=request.kind,
        script=str(script),
        log=str(request.paths.job_log(request.kind, job_id)),
        after=after,
        cluster=request.settings.cluster or "",
    )
    write_job(request.paths, job)
    return job
