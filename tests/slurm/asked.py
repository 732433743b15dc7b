"""Jobs that tests ask for, and what their scripts are to be.

`tests/golden/slurm` holds the whole texts. After a change that is meant, write them anew by

    python -c "from tests.slurm.asked import *
    for name, job in JOBS.items(): golden(name).write_text(render(job))"

and read what has changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sailplan.run.paths import RunPaths
from sailplan.run.slurm_block import SlurmBlock
from sailplan.slurm.jobs import Kind
from sailplan.slurm.script import JobRequest
from sailplan.slurm.script import render as render

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "slurm"

CLUSTER = {
    "partition": "gpu",
    "account": "vision",
    "time": "08:00:00",
    "gpu_type": "h100",
    "cpus_per_gpu": 12,
    "mem_per_gpu": "120G",
}


def asked(
    kind: Kind = "train",
    *,
    run: Path = Path("/shared/ann/runs/catalogue"),
    nodes: int = 1,
    gpus: int = 8,
    command: tuple[str, ...] | None = None,
    settings: dict[str, Any] | None = None,
    **values: Any,
) -> JobRequest:
    """Returns a job as `sailplan submit` asks for it."""
    paths = RunPaths(run)
    if command is None:
        machines = ("--num_machines", str(nodes), "--rdzv_backend", "static") if nodes > 1 else ()
        command = (
            *("launch", "--config_file", str(paths.accelerate_file)),
            *("--num_processes", str(nodes * gpus), *machines),
            *("-m", "sailplan.train.sft_vlm", "--config", str(paths.train_file)),
        )
        if kind != "train":
            command = ("python", "-m", "sailplan", kind, str(run), "--output", str(run / "merged"))
    return JobRequest(
        **{
            "kind": kind,
            "name": run.name,
            "paths": paths,
            "settings": SlurmBlock.model_validate(settings or {}),
            "nodes": nodes,
            "gpus_per_node": gpus,
            "command": command,
            "working_directory": Path("/shared/ann"),
            "python": Path("/shared/ann/venv/bin/python"),
            "about": "trains a/b, zero3 on 2 × 8 ranks",
            **values,
        }
    )


JOBS = {
    "train_1_node": asked(),
    "train_2_nodes": asked(
        nodes=2,
        settings={
            **CLUSTER,
            "modules": ["cuda/12.8", "nccl"],
            "venv": "/shared/venvs/sailplan",
            "environment": {"NCCL_SOCKET_IFNAME": "ib0", "NCCL_DEBUG": "INFO"},
            "shared_cache": "/shared/cache/huggingface",
            "local_cache": "/local/$USER/sailplan",
            "mail_user": "ann@example.org",
            "directives": ["--licenses=a:1", "--comment=two words"],
        },
        variables={"OMP_NUM_THREADS": "12", "HF_HUB_OFFLINE": "1"},
        wanted=("HF_TOKEN",),
    ),
    "train_on_cpus": asked(nodes=2, gpus=0, settings={"cpus_per_task": 4, "mem": "16G"}),
    "train_in_pyxis": asked(
        nodes=2,
        settings={
            **CLUSTER,
            "gpu_request": "gpus_per_node",
            "container": {"runtime": "pyxis", "image": "/shared/images/a b.sqsh", "mounts": ["/d"]},
            "local_cache": "/tmp/it's $USER's",
        },
    ),
    "train_in_apptainer": asked(
        settings={
            **CLUSTER,
            "gpu_request": "gpus_per_task",
            "container": {"runtime": "apptainer", "image": "/shared/a.sif", "mounts": ["/d:/data"]},
            "venv": "/opt/venv",
            "shared_cache": "/shared/cache",
        },
    ),
    "merge": asked("merge", settings={**CLUSTER, "merge": {"partition": "cpu", "time": "1:00:00"}}),
    "merge_in_pyxis": asked(
        "merge", settings={"container": {"runtime": "pyxis", "image": "nvcr.io#nvidia/pytorch"}}
    ),
    "compare": asked("compare", settings={**CLUSTER, "local_cache": "~/cache"}),
}
"""Each job whose script is kept whole, by the name of its file."""


def golden(name: str) -> Path:
    """Returns the file with a job's whole script."""
    return GOLDEN / f"{name}.sbatch"


def shellcheck(script: Path) -> str:
    """Returns what shellcheck says of a script; skips where there is none."""
    if shutil.which("shellcheck") is None:
        missing = "no shellcheck here: apt-get install -y --no-install-recommends shellcheck"
        if os.environ.get("SAILPLAN_REQUIRE_SLURM") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def parsed(script: Path) -> str:
    """Returns what bash says of a script that it reads without running it."""
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, timeout=60)
    return done.stderr
