"""What the machine has: real driver, real compiler, and control groups as files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sailplan.hardware.detect import (
    Gpu,
    detect,
    detect_cpu_cores,
    detect_cpu_zero,
    detect_gpus,
    detect_memory,
    select_visible,
)

FOUND = [
    ("GPU-aaaa", Gpu(name="A", memory_bytes=1)),
    ("GPU-bbbb", Gpu(name="B", memory_bytes=2)),
    ("GPU-bbcc", Gpu(name="C", memory_bytes=3)),
]


def test_detect_this_machine_gives_every_answer_with_its_reason() -> None:
    machine = detect()
    assert machine.cpu_cores.value >= 1
    assert machine.memory_bytes.value > 2**28
    for answer in (machine.gpus, machine.cpu_cores, machine.memory_bytes, machine.cpu_zero):
        assert answer.reason


@pytest.mark.parametrize("hidden", ["", "-1", " "])
def test_gpus_hidden_by_the_environment_are_none_and_say_why(hidden: str) -> None:
    gpus = detect_gpus({"CUDA_VISIBLE_DEVICES": hidden})
    assert gpus.value == ()
    assert "CUDA_VISIBLE_DEVICES" in gpus.reason


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has a driver")
def test_gpus_without_driver_are_none_and_say_why() -> None:
    gpus = detect_gpus({})
    assert gpus.value == ()
    assert "no NVIDIA driver answers" in gpus.reason


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("0", "A"),
        ("2,0", "CA"),
        ("0,7,1", "A"),  # CUDA stops at the first index that does not exist
        ("GPU-bbcc,GPU-a", "CA"),
        ("GPU-bb,0", ""),  # two begin with it
        ("MIG-1234", "A"),
    ],
)
def test_select_visible_follows_cuda(visible: str, names: str) -> None:
    assert "".join(gpu.name for gpu in select_visible(FOUND, visible)) == names


def test_cpu_cores_with_smaller_quota_are_the_quota(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    cores = detect_cpu_cores(tmp_path, tmp_path)
    own = len(os.sched_getaffinity(0))
    assert cores.value == 1
    assert ("quota" in cores.reason) == (own > 1)


@pytest.mark.parametrize("text", ["max 100000\n", None])
def test_cpu_cores_without_quota_are_the_affinity_mask(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "cpu.max").write_text(text)
    assert detect_cpu_cores(tmp_path, tmp_path).value == len(os.sched_getaffinity(0))


def test_cpu_cores_with_two_threads_each_count_once(tmp_path: Path) -> None:
    for thread in os.sched_getaffinity(0):
        folder = tmp_path / f"cpu{thread}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("all of them\n")
    assert detect_cpu_cores(tmp_path, tmp_path).value == 1


def test_memory_with_smaller_limit_is_the_limit(tmp_path: Path) -> None:
    whole = detect_memory(tmp_path)
    (tmp_path / "memory.max").write_text("1073741824\n")
    limited = detect_memory(tmp_path)
    assert limited.value == 2**30 < whole.value
    assert "limit" in limited.reason


def test_cpu_zero_without_compiler_names_it(tmp_path: Path) -> None:
    answer = detect_cpu_zero({"PATH": str(tmp_path), "CXX": "clang++-99"})
    assert not answer.value
    assert "clang++-99 is not on PATH" in answer.reason


def test_cpu_zero_without_headers_names_them(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    answer = detect_cpu_zero({"PATH": str(tmp_path)}, include=tmp_path)
    assert not answer.value
    assert f"{tmp_path}/Python.h is missing" in answer.reason
    (tmp_path / "Python.h").touch()
    assert detect_cpu_zero({"PATH": str(tmp_path)}, include=tmp_path).value
