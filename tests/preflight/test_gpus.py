"""What the driver tells of GPUs, judged. The driver itself is asked in tests/gpu."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sailplan.errors import HardwareError
from sailplan.hardware.driver import GpuState, Process
from sailplan.preflight import gpus
from sailplan.preflight.before import machine as prove_machine
from sailplan.preflight.finding import Subject
from tests.launcher.support import machine
from tests.preflight.machines import GIB, gpu, run_of, with_gpus

HELD = gpu(
    1,
    free_bytes=10 * GIB,
    processes=(Process(pid=4711, name="python", memory_bytes=69 * GIB),),
)


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
