"""What the driver tells of GPUs, and how it is judged.

Without a GPU the driver's library is a small one of ours, built here; tests/gpu asks the real one.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from sailplan.errors import HardwareError
from sailplan.hardware.driver import GpuState, Process
from sailplan.preflight import gpus, installed
from sailplan.preflight.before import machine as prove_machine
from sailplan.preflight.finding import Subject
from tests.launcher.support import machine
from tests.preflight.machines import GIB, doctor, gpu, run_of, with_gpus

HELD = gpu(
    1,
    free_bytes=10 * GIB,
    processes=(Process(pid=4711, name="python", memory_bytes=69 * GIB),),
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables with which a process finds our driver and its two GPUs."""
    library = tmp_path_factory.mktemp("driver") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return {"LD_LIBRARY_PATH": str(library.parent), "DRIVER_CUDA": "13000"}


def test_driver_is_asked_for_all_that_is_judged(driver: dict[str, str]) -> None:
    code, found = doctor("--quick", env=driver)
    assert code == 5
    assert found["driver"].text.startswith("550.54.15, up to CUDA 13.0")
    assert found["GPUs"].text == "2 × NVIDIA H100 80GB HBM3, 80.0 GiB each"
    assert found["links"].text == "NVLink, 18 connections each; PCIe 5.0 x16"
    assert found["GPU memory"].mark == "failed"
    assert re.fullmatch(
        r"GPU 1: 10\.0 GiB of 80\.0 GiB free, held by python\S* \d+ 69\.0 GiB",
        found["GPU memory"].text,
    )
    assert [name for name, one in found.items() if one.mark == "failed"] == ["GPU memory"]


def test_driver_tells_of_bad_memory_that_waits_for_a_reset(driver: dict[str, str]) -> None:
    _, found = doctor("--quick", env={**driver, "DRIVER_ERRORS": "3"})
    assert found["GPUs"].text == (
        "memory errors that could not be corrected "
        "(GPU 1: 3 errors, a reset must take bad rows out)"
    )


def test_driver_counts_only_visible_gpus(driver: dict[str, str]) -> None:
    _, found = doctor("--quick", env={**driver, "CUDA_VISIBLE_DEVICES": "0"})
    assert found["GPUs"].text == "1 × NVIDIA H100 80GB HBM3, 80.0 GiB each"
    assert found["GPU memory"].text == "80.0 GiB free at least, 0 others"
    assert found["links"].text == "PCIe 5.0 x16"


def test_driver_that_runs_too_old_a_cuda_is_found(driver: dict[str, str]) -> None:
    build = installed.torch_build()
    if build is None or build.cuda is None:
        pytest.skip("torch is built without CUDA")
    _, found = doctor("--quick", env={**driver, "DRIVER_CUDA": "10020"})
    assert found["driver"].mark == "failed"
    assert found["driver"].text.startswith("550.54.15, up to CUDA 10.2, and torch was built for")


def test_gpus_that_are_well_are_counted_and_named() -> None:
    found = gpus.gpus(with_gpus(gpu(0), gpu(1)))
    assert (found.mark, found.text) == ("ok", "2 × NVIDIA H100 80GB HBM3, 80.0 GiB each")


def test_gpus_of_two_kinds_are_told() -> None:
    found = gpus.gpus(with_gpus(gpu(0), gpu(1, name="NVIDIA L4")))
    assert "the slowest sets the pace" in found.fix


def test_gpu_with_memory_errors_is_found() -> None:
    found = gpus.gpus(with_gpus(gpu(0), gpu(3, memory_errors=2)))
    assert found.mark == "failed"
    assert "GPU 3: 2" in found.text


def test_memory_that_others_hold_is_found_with_their_names() -> None:
    found = gpus.memory(with_gpus(gpu(0), HELD))
    assert (found.mark, found.text) == (
        "failed",
        "GPU 1: 10.0 GiB of 80.0 GiB free, held by python 4711 69.0 GiB",
    )


def test_memory_that_others_hold_stops_a_launch(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    subject = replace(
        with_gpus(HELD), run=run, division=Subject.of(run, machine=machine(gpus=1)).division
    )
    with pytest.raises(HardwareError, match=r"GPU memory: GPU 1: .* --no-preflight goes on"):
        prove_machine(subject)


def test_memory_that_others_hold_does_not_matter_to_a_run_on_the_cpu(tmp_path: Path) -> None:
    run = run_of(tmp_path, "--launch.cpu", "true")
    subject = replace(with_gpus(HELD), run=run, division=Subject.of(run).division)
    assert gpus.memory(subject).mark == "ok"
    prove_machine(subject)


@pytest.mark.parametrize(
    ("states", "mark", "text"),
    [
        ([gpu()], "ok", "PCIe 5.0 x16"),
        ([gpu(0), gpu(1)], "ok", "NVLink, 18 connections each; PCIe 5.0 x16"),
        ([gpu(0, nvlinks=0), gpu(1, nvlinks=0)], "ok", "PCIe 5.0 x16, through the CPUs"),
        (
            [gpu(0), gpu(1, nvlinks=0, nvlinks_down=18)],
            "failed",
            "NVLink is there and not up on GPU 1",
        ),
        ([], "not checked", "no GPU is here"),
    ],
)
def test_links_between_gpus_are_told(states: list[GpuState], mark: str, text: str) -> None:
    found = gpus.links(with_gpus(*states))
    assert (found.mark, found.text) == (mark, text)


def test_more_gpus_than_there_are_is_found(tmp_path: Path) -> None:
    run = run_of(tmp_path, "--launch.gpus_per_node", "8")
    found = gpus.division(Subject.of(run, machine=machine(gpus=2)))
    assert found.mark == "failed"
    assert found.text.startswith("8 processes are asked for, and there are 2 GPUs here")


def test_strategy_for_gpus_cannot_be_judged_without_any(tmp_path: Path) -> None:
    run = run_of(tmp_path, "--launch.strategy", "fsdp2", "--launch.gpus_per_node", "8")
    assert gpus.division(Subject.of(run, machine=machine())).mark == "not checked"


def test_one_machine_of_several_is_examined(tmp_path: Path) -> None:
    run = run_of(tmp_path, "--launch.nodes", "2", "--launch.gpus_per_node", "8")
    found = gpus.division(Subject.of(run, machine=machine(gpus=8)))
    assert (found.mark, found.text) == ("ok", "zero3: 8 processes on a GPU each")
