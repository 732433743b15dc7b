"""Runs that tests submit to the cluster, and what they see of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sailplan.run.paths import RunPaths
from tests.slurm.cluster import Cluster
from tests.support.rows import chat_rows

LIMIT_S = 200
"""More than any job here takes, on a slow machine that does other things as well."""


def tiny_run(folder: Path, model: Path, **values: Any) -> Path:
    """Writes a run file of a small text model: 8 steps, each logged, every third one saved."""
    launch = {"cpu": True, "processes": 1, "strategy": "ddp", **values.pop("launch", {})}
    slurm = {"cpus_per_task": 1, "mem": "4G", "stop_before_s": 60, **values.pop("slurm", {})}
    written = {
        "model_name_or_path": str(model),
        "dataset_name": str(chat_rows(folder / "rows", 24, images=False)),
        "output_dir": str(folder / "run"),
        "max_steps": 8,
        "learning_rate": 1e-3,
        "global_batch_size": 4,
        "per_device_train_batch_size": 2,
        "bf16": False,
        "logging_steps": 1,
        "save_steps": 3,
        "report_to": "none",
        "use_peft": True,
        "launch": launch,
        "slurm": slurm,
        **values,
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(written, sort_keys=False))
    return file


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What `sailplan submit` has answered."""

    cluster: Cluster
    paths: RunPaths
    jobs: Mapping[str, int]
    """The id of each kind of job."""
    said: str

    @property
    def train(self) -> int:
        """The training job's id."""
        return self.jobs["train"]

    def log(self, kind: str = "train") -> str:
        """What a job has printed until now."""
        file = self.paths.job_log(kind, self.jobs[kind])
        return file.read_text(errors="replace") if file.exists() else ""

    def wait(self, *states: str, kind: str = "train") -> dict[str, str]:
        """Waits until a job is in one of these states."""
        return self.cluster.wait_for(self.jobs[kind], *states, timeout_s=LIMIT_S)


def sailplan(
    cluster: Cluster,
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    limit_s: float = LIMIT_S,
) -> subprocess.CompletedProcess[str]:
    """Runs `sailplan` where jobs are submitted."""
    return subprocess.run(
        [sys.executable, "-m", "sailplan", *map(str, arguments)],
        env={**os.environ, **cluster.env, **(environment or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=limit_s,
    )


def submit(
    cluster: Cluster,
    run: str | Path,
    *arguments: str,
    output_dir: Path,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Submitted:
    """Submits a run, and returns its jobs.

    Raises:
        AssertionError: It was refused.
    """
    done = sailplan(cluster, "submit", run, *arguments, environment=environment, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = re.findall(r"^(train|merge|compare): job (\d+)", done.stdout, re.MULTILINE)
    return Submitted(
        cluster=cluster,
        paths=RunPaths(output_dir),
        jobs={kind: int(job) for kind, job in jobs},
        said=done.stdout,
    )


def meeting(there: Path, what: str, step: int) -> dict[str, Any]:
    """Returns a fault: the first rank comes to a place, once, and waits until it is asked to stop.

    Args:
        there: Is there once the rank has come.
        what: `meet_in_step` or `meet_in_save`.
        step: Optimizer steps that are done then.
    """
    return {"what": what, "rank": 0, "step": step, "there": str(there)}


def until(true: Callable[[], object], told: Callable[[], str], limit_s: float = LIMIT_S) -> None:
    """Waits until something is so.

    Raises:
        AssertionError: It takes too long.
    """
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, told()[-4000:]
        time.sleep(0.05)
