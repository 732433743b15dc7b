"""The doctor of a cluster, on a real one: nodes that are well, nodes that are not, and a queue."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from sailplan.preflight.cluster.doctor import NAMES
from sailplan.preflight.finding import Finding
from tests.slurm.cluster import Cluster
from tests.slurm.runs import LIMIT_S, sailplan, tiny_run, until

PROFILE = {"partition": "gpu", "time": "00:30:00", "cpus_per_task": 2, "mem": "4G"}
GPU_LINES = ["driver", "GPUs", "GPU memory", "Xid errors"]


@pytest.fixture
def profile(tmp_path: Path) -> Callable[..., Path]:
    """Writes a cluster's profile."""

    def write(**settings: object) -> Path:
        path = tmp_path / "here.yaml"
        path.write_text(yaml.safe_dump({**PROFILE, **settings}))
        return path

    return write


def doctor(
    cluster: Cluster, profile: Path | str, *arguments: str | Path, cwd: Path, code: int = 0
) -> dict[str, Finding]:
    """Calls the doctor as a user does, for JSON; returns its lines."""
    command = ("doctor", *arguments, "--cluster", profile, "--json")
    done = sailplan(cluster, *command, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    found = {
        line["check"]: Finding(
            mark=line["mark"], text=line["text"], fix=line["fix"], detail=line["detail"]
        )
        for line in json.loads(done.stdout)["checks"]
    }
    assert list(found) == list(NAMES)
    return found


def marked(found: dict[str, Finding], mark: str) -> list[str]:
    return [name for name, line in found.items() if line.mark == mark]


def test_two_nodes_that_are_well_are_proven_for_a_run(
    cluster: Cluster,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    profile: Callable[..., Path],
) -> None:
    launch = {"cpu": True, "processes": 2, "strategy": "ddp"}
    run = tiny_run(tmp_path, tiny_model("llama"), launch=launch, slurm={})
    before = sorted(path.name for path in tmp_path.iterdir())

    found = doctor(cluster, profile(), run, cwd=tmp_path)

    assert marked(found, "not checked") == GPU_LINES
    assert found["profile"].text == "here: partition gpu, time 00:30:00, no GPUs"
    assert found["partition"].text == "gpu: 2 idle"
    assert found["compare job"].text == "accepted, would start now"
    assert found["nodes"].text == "node1, node2: 2 × 2 ranks"
    assert str(tmp_path) in found["shared disk"].text
    assert found["ranks"].text.startswith("ddp × 4 over gloo: started in ")
    assert "GB/s at least, over gloo" in found["inside nodes"].text
    assert "GB/s at least between two nodes, over gloo" in found["across nodes"].text
    assert "of work alone" in found["steps"].text
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "here.yaml"])


@contextmanager
def made(folder: Path) -> Iterator[Path]:
    """A folder on the disk of one node, while it is wanted."""
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def test_node_with_another_environment_is_named_and_its_job_kept(
    cluster: Cluster,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    profile: Callable[..., Path],
) -> None:
    run = tiny_run(tmp_path, tiny_model("llama"), slurm={})
    of_node2 = cluster.directory / "nodes" / "node2" / "local"
    with made(of_node2 / "deepspeed-0.1.dist-info") as shim:
        (shim / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.1\n")
        found = doctor(
            cluster,
            profile(environment={"PYTHONPATH": f"{cluster.local}:{os.environ['PYTHONPATH']}"}),
            *(run, "--folder", tmp_path / "kept"),
            cwd=tmp_path,
            code=5,
        )

    assert marked(found, "failed") == ["software"]
    assert found["software"].text.startswith("node2: deepspeed 0.1, elsewhere ")
    assert "venv or container" in found["software"].fix
    kept = sorted(path.name for path in (tmp_path / "kept").glob("*.json"))
    assert kept[:2] == ["node-node1.json", "node-node2.json"]


@pytest.mark.parametrize(
    ("settings", "line", "text"),
    [
        ({"partition": "nowhere"}, "partition", "no partition 'nowhere'; allowed: gpu, "),
        ({"directives": ["--gres=gpu:9"]}, "train job", "node configuration is not available"),
        (
            {"gpu": "H100", "gpus_per_node": 8, "gpu_type": "a100"},
            "train job",
            "node configuration is not available",
        ),
    ],
)
def test_profile_that_slurm_refuses_says_so_in_slurms_words(
    cluster: Cluster,
    tmp_path: Path,
    profile: Callable[..., Path],
    settings: dict[str, object],
    line: str,
    text: str,
) -> None:
    found = doctor(cluster, profile(**settings), "--quick", cwd=tmp_path, code=5)
    assert line in marked(found, "failed")
    assert text in found[line].text
    assert found[line].fix or line == "partition"
    assert found["smoke job"].text == "left out by --quick"
    assert [path.name for path in tmp_path.iterdir()] == ["here.yaml"]


def test_profile_with_gpus_is_accepted(
    cluster: Cluster, tmp_path: Path, profile: Callable[..., Path]
) -> None:
    gpus = {"gpu": "H100", "gpu_type": "h100", "gpus_per_node": 8, "gpu_request": "gpus_per_node"}
    found = doctor(cluster, profile(**gpus), "--quick", cwd=tmp_path)
    assert found["profile"].text.endswith("8 × H100 a node")
    assert marked(found, "failed") == []


def test_nodes_that_do_not_see_the_folder_are_a_fault(
    cluster: Cluster, tmp_path: Path, profile: Callable[..., Path]
) -> None:
    folder = cluster.local / "smoke"
    found = doctor(cluster, profile(), "--folder", folder, cwd=tmp_path, code=5)
    assert "could not write into" in found["smoke job"].text
    assert str(folder) in found["smoke job"].text
    assert "--folder" in found["smoke job"].fix


@contextmanager
def full(cluster: Cluster) -> Iterator[None]:
    """All nodes are taken by another's job."""
    other = cluster.submit("sleep 300", "--nodes=2", "--exclusive")
    cluster.wait_for(other, "RUNNING")
    try:
        yield
    finally:
        cluster.run("scancel", str(other))
        cluster.wait_for(other)


def test_job_that_pends_for_too_long_is_cancelled_and_said(
    cluster: Cluster, tmp_path: Path, profile: Callable[..., Path]
) -> None:
    with full(cluster):
        found = doctor(cluster, profile(), "--wait", "2", cwd=tmp_path)
        assert len(cluster.job_ids()) == 1
    line = found["smoke job"]
    assert line.mark == "not checked"
    assert "is cancelled: it waits for " in line.text
    assert "--wait" in line.text
    assert [path.name for path in tmp_path.iterdir()] == ["here.yaml"]


def test_doctor_that_is_interrupted_cancels_its_job(
    cluster: Cluster, tmp_path: Path, profile: Callable[..., Path]
) -> None:
    said = tmp_path / "said"
    with full(cluster), said.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "sailplan", "doctor", "--cluster", str(profile())],
            env={**os.environ, **cluster.env},
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        until(lambda: "smoke job" in said.read_text(), said.read_text)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=LIMIT_S) == 75
        assert len(cluster.job_ids()) == 1
    assert "stopped as asked, and the smoke job with it" in said.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.yaml", "said"]


def test_machine_without_slurm_is_told_to_be_one(
    tmp_path: Path, profile: Callable[..., Path], cluster: Cluster
) -> None:
    environment = {"PATH": str(Path(sys.executable).parent)}
    command = ("doctor", "--cluster", profile(), "--json")
    done = sailplan(cluster, *command, cwd=tmp_path, environment=environment)
    assert done.returncode == 5, done.stderr
    lines = json.loads(done.stdout)["checks"]
    assert [line["check"] for line in lines if line["mark"] == "failed"] == ["Slurm"]
    assert "sbatch, srun, scontrol" in lines[1]["text"]
    assert "login node" in lines[1]["fix"]


def test_profile_that_is_not_there_ends_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    done = sailplan(cluster, "doctor", "--cluster", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert "no cluster profile 'nowhere'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
