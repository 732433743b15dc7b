"""The smoke job as it is asked for: its script, whole, and what it takes over from a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sailplan import files
from sailplan.preflight.cluster.site import Site, Smoke, asked_jobs, smoke
from sailplan.preflight.cluster.smoke_job import TEMPLATE
from sailplan.run.config import Run
from sailplan.run.slurm_block import SlurmBlock
from sailplan.slurm.request import JobRequest
from sailplan.slurm.script import render
from tests.preflight.machines import run_of
from tests.slurm.asked import parsed, shellcheck

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "smoke.sbatch"
CLUSTER = {
    "partition": "gpu",
    "time": "08:00:00",
    "gpu": "H100",
    "gpus_per_node": 8,
    "gpu_type": "h100",
    "cpus_per_gpu": 12,
    "mem_per_gpu": "120G",
    "mail_user": "ann@example.org",
    "environment": {"NCCL_SOCKET_IFNAME": "ib0"},
    "local_cache": "/local/$USER",
    "modules": ["cuda/12.8"],
}
FOLDER = Path("/shared/ann/.sailplan-smoke-1")


def site(run: Run | None = None, **settings: Any) -> Site:
    block = SlurmBlock.model_validate({**CLUSTER, **settings})
    return Site(settings=block, run=run, environment={"PATH": "/usr/bin"})


def script(request: JobRequest) -> str:
    template = (files.folder("slurm") / TEMPLATE).read_text()
    python = Path("/shared/ann/venv/bin/python")
    request = replace(request, working_directory=Path("/shared/ann"), python=python)
    return render(request, template=template)


def test_script_is_the_golden_text() -> None:
    assert script(smoke(site(), FOLDER, 2, strategy=None).request) == GOLDEN.read_text()


@pytest.mark.parametrize("num_nodes", [1, 2])
@pytest.mark.parametrize(
    "container",
    [None, {"runtime": "pyxis", "image": "a b"}, {"runtime": "apptainer", "image": "/a.sif"}],
)
def test_script_is_clean(tmp_path: Path, num_nodes: int, container: dict[str, str] | None) -> None:
    path = tmp_path / "smoke.sbatch"
    job = smoke(site(container=container), Path("/shared/it's ; mine"), num_nodes, strategy=None)
    path.write_text(script(job.request))
    assert parsed(path) == ""
    assert shellcheck(path) == ""


def of_run(tmp_path: Path, *flags: str, strategy: str | None = None, **settings: Any) -> Smoke:
    return smoke(site(run_of(tmp_path, *flags), **settings), tmp_path, 2, strategy=strategy)


def test_smoke_job_takes_strategy_and_precision_of_the_run(tmp_path: Path) -> None:
    flags = ("--bf16", "true", "--launch.strategy", "zero3", "--launch.nodes", "4")
    job = of_run(tmp_path, *flags)
    assert (job.launch.strategy, job.launch.processes, job.launch.nodes) == ("zero3", 16, 2)
    (train_file,) = (text for path, text in job.launch.files.items() if path.name == "train.yaml")
    assert "bf16: true" in train_file
    assert "model_name_or_path" not in train_file


def test_strategy_that_was_planned_is_taken_where_the_run_leaves_it_open(tmp_path: Path) -> None:
    assert of_run(tmp_path, strategy="zero2").launch.strategy == "zero2"


def test_one_rank_each_on_two_nodes_is_no_single_run(tmp_path: Path) -> None:
    flags = ("--launch.cpu", "true", "--launch.processes", "1", "--launch.strategy", "single")
    job = of_run(tmp_path, *flags)
    assert (job.launch.strategy, job.ranks_per_node, job.gpu) == ("ddp", 1, "")
    assert job.request.gpus_per_node == 0


def test_one_rank_alone_is_single() -> None:
    job = smoke(site(gpus_per_node=1), FOLDER, 1, strategy=None)
    assert (job.launch.strategy, job.gpu) == ("single", "H100-80GB")


def test_cluster_without_gpus_is_proven_on_its_cpus() -> None:
    job = smoke(site(gpu=None, gpus_per_node=None), FOLDER, 2, strategy=None)
    assert (job.ranks_per_node, job.request.gpus_per_node) == (2, 0)


@pytest.mark.parametrize(("time", "expected"), [("00:05:00", "00:05:00"), ("1-00", "00:10:00")])
def test_smoke_job_asks_for_little_time(time: str, expected: str) -> None:
    job = smoke(site(time=time), FOLDER, 2, strategy=None)
    assert job.request.settings.time == expected


def test_jobs_of_a_run_are_those_that_submit_would_submit(tmp_path: Path) -> None:
    flags = ("--launch.cpu", "true", "--launch.processes", "2", "--launch.strategy", "zero2")
    asked = asked_jobs(site(run_of(tmp_path, *flags)), tmp_path / "none", 2)
    assert [request.kind for request in asked.requests] == ["train", "merge", "compare"]
    assert asked.strategy == "zero2"
    assert asked.requests[0].paths.path == tmp_path / "out"
