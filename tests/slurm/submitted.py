"""Runs whose jobs are real ones, with scripts that do as ours do and take seconds."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from sailplan.run.paths import RunPaths
from sailplan.slurm.jobs import Job, Kind, write_job
from tests.slurm.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]

TRAIN = """\
#!/bin/bash
set -euo pipefail
cd {root}
run={run}
asked=''
trap 'asked=yes; touch "$run/STOP"' USR1 TERM
{command} &
while :; do
    code=0
    wait $! || code=$?
    kill -0 $! 2>/dev/null || break
done
echo "$code" > "$run/code"
if [ "$code" = 75 ] && [ -n "$asked" ] && [ ! -e "$run/slurm/jobs/$SLURM_JOB_ID.cancelled" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def steps(paths: RunPaths, num_steps: int) -> str:
    """The command of a training that takes so many steps of a fifth of a second."""
    return shlex.join([sys.executable, "-m", "tests.slurm.steps", str(paths.path), str(num_steps)])


def submit(
    cluster: Cluster,
    paths: RunPaths,
    kind: Kind,
    script: str,
    *options: str,
    after: int | None = None,
) -> int:
    """Submits a job of a run as `sailplan submit` does, and returns its id."""
    paths.jobs.mkdir(parents=True, exist_ok=True)
    log = paths.job_log(kind, "%j")
    given = [f"--output={log}", "--open-mode=append", *options]
    if after is not None:
        given += [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    job_id = cluster.submit(script, *given)
    script_file = str(paths.job_script(kind))
    written = Job(
        job_id=job_id,
        kind=kind,
        script=script_file,
        log=str(paths.job_log(kind, job_id)),
        after=after,
    )
    write_job(paths, written)
    return job_id


def train(cluster: Cluster, paths: RunPaths, command: str, options: Iterable[str] = ()) -> int:
    """Submits the training job of a run, which does a command."""
    script = TRAIN.format(
        root=shlex.quote(str(ROOT)), run=shlex.quote(str(paths.path)), command=command
    )
    return submit(cluster, paths, "train", script, *options)
