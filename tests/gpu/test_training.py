"""The entry script on a CUDA device: the lines that the CPU tests run, on another device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.launch import ENTRY, flags, losses
from tests.support.rows import chat_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS = 10


def train(output: Path, values: dict[str, Any]) -> list[float]:
    common = {
        "output_dir": output,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "report_to": "none",
    }
    command = [sys.executable, "-m", ENTRY, *flags({**common, **values})]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return losses(output)


@pytest.fixture
def inputs(tmp_path: Path, tiny_model: Callable[[str], Path]) -> dict[str, Any]:
    return {
        "model_name_or_path": tiny_model("qwen2_vl"),
        "dataset_name": chat_rows(tmp_path / "data", 24),
    }


def test_full_run_in_fp32_has_the_curve_of_the_cpu(tmp_path: Path, inputs: dict[str, Any]) -> None:
    exact = {**inputs, "bf16": "false", "tf32": "false"}
    on_gpu = train(tmp_path / "gpu", exact)
    on_cpu = train(tmp_path / "cpu", {**exact, "use_cpu": "true"})
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_quantised_lora_trains_and_saves_its_adapter(
    tmp_path: Path, inputs: dict[str, Any], bits: str
) -> None:
    method = {bits: "true", "use_peft": "true", "dtype": "bfloat16", "learning_rate": 1e-2}
    curve = train(tmp_path / "out", {**inputs, **method})
    assert curve[-1] < curve[0]
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() and tensor.any() for tensor in adapter.values())
