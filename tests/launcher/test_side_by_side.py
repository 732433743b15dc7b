from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sailplan.hardware.detect import Detected, Gpu, Machine
from sailplan.launcher.side_by_side import environments, run_all

RANK = "tests.support.one_rank"


def machine(num_gpus: int, cores: int = 8) -> Machine:
    gpu = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 2**30)
    return Machine(
        gpus=Detected(value=(gpu,) * num_gpus, reason="test"),
        cpu_cores=Detected(value=cores, reason="test"),
        memory_bytes=Detected(value=2**40, reason="test"),
        cpu_zero=Detected(value=True, reason="test"),
    )


@pytest.mark.parametrize(
    ("visible", "devices"),
    [(None, ["0", "1", "2"]), ("5, 3,GPU-1a2b", ["5", "3", "GPU-1a2b"])],
)
def test_each_rank_sees_a_gpu_of_its_own(visible: str | None, devices: list[str]) -> None:
    given = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    made = environments(machine(3), 3, on_cpu=False, environment=given)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in made] == devices
    assert [one["OMP_NUM_THREADS"] for one in made] == ["2"] * 3
    fewer = environments(machine(3), 2, on_cpu=False, environment=given)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in fewer] == devices[:2]


def test_ranks_on_the_cpu_share_its_cores_and_see_no_gpu() -> None:
    made = environments(machine(2), 4, on_cpu=True, environment={"A": "b"})
    assert made == [{"A": "b", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}] * 4
    given = environments(machine(0), 4, on_cpu=True, environment={"OMP_NUM_THREADS": "1"})
    assert {one["OMP_NUM_THREADS"] for one in given} == {"1"}


def test_ranks_are_told_which_they_are_and_one_that_fails_leaves_the_others(tmp_path: Path) -> None:
    common = {**os.environ, "CODE_1": "9"}
    given = [{**common, "CUDA_VISIBLE_DEVICES": name} for name in ("a", "b", "c")]
    ended = run_all(RANK, [str(tmp_path)], given, tmp_path)
    assert [(one.rank, one.exit_code, one.last_words) for one in ended] == [
        (0, 0, ""),
        (1, 9, "these last words"),
        (2, 0, ""),
    ]
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in told] == ["a", "b", "c"]
    assert {one["ranks"] for one in told} == {"3"}
    assert not (tmp_path / "rank-0.log").exists()
    assert "rank 2 has" in (tmp_path / "rank-2.log").read_text()


def test_interrupted_launch_leaves_no_rank(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from sailplan.launcher.side_by_side import run_all\n"
        f"run_all({RANK!r}, [sys.argv[1]], [dict(os.environ)] * 2, Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(
        command, env={**os.environ, "WAITS": "1"}, stderr=subprocess.DEVNULL
    ) as launcher:
        ends = time.monotonic() + 60
        while len(list(tmp_path.glob("told-*.json"))) < 2:
            assert time.monotonic() < ends
            time.sleep(0.01)
        ranks = psutil.Process(launcher.pid).children()
        assert len(ranks) == 2
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(timeout=30) != 0
    assert not any(rank.is_running() for rank in ranks)
