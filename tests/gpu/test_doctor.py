"""The doctor where there are GPUs: what the driver really tells, and the smoke test over NCCL."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from sailplan.hardware.driver import read_driver
from tests.preflight.machines import doctor, run_file

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
COUNT = torch.cuda.device_count()


def test_driver_tells_what_torch_sees() -> None:
    driver = read_driver(os.environ).value
    assert driver is not None
    assert [gpu.name for gpu in driver.gpus] == [
        torch.cuda.get_device_name(index) for index in range(COUNT)
    ]
    assert driver.gpus[0].compute_capability == torch.cuda.get_device_capability(0)
    assert driver.gpus[0].memory_bytes >= torch.cuda.get_device_properties(0).total_memory
    assert driver.cuda_version >= (12, 0)


def test_process_that_holds_memory_is_counted() -> None:
    before = read_driver(os.environ).value
    held = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    after = read_driver(os.environ).value
    assert before is not None
    assert after is not None
    assert before.gpus[0].free_bytes - after.gpus[0].free_bytes >= held.numel() // 2


def test_doctor_of_a_run_leaves_nothing_unchecked(tmp_path: Path) -> None:
    flags = ["--use_peft", "true", "--load_in_4bit", "true", "--bf16", "true"]
    code, found = doctor(str(run_file(tmp_path)), *flags)
    assert code == 0, found
    assert "quantises rightly on cuda" in found["bitsandbytes works"].text
    assert f"right on {COUNT} GPUs" in found["torch computes"].text
    expected = "single on cuda" if COUNT == 1 else f"ddp × {COUNT} over nccl"
    assert found["smoke test"].text.startswith(expected)
    unchecked = [name for name, finding in found.items() if finding.mark == "not checked"]
    assert unchecked == ["hub token"]  # the tests run with the hub switched off


@pytest.mark.skipif(COUNT < 2, reason="needs two GPUs")
@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
def test_smoke_test_of_each_strategy_trains_as_asked(tmp_path: Path, strategy: str) -> None:
    _, found = doctor(str(run_file(tmp_path)), "--launch.strategy", strategy)
    assert found["smoke test"].mark == "ok", found
