"""A full fine-tuning goes on from a checkpoint as if it had never stopped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.launch import ENTRY, flags, losses
from tests.support.rows import chat_rows


def train(values: dict[str, Any]) -> None:
    command = [sys.executable, "-m", ENTRY, "--use_cpu", *flags(values)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_full_run_resumed_from_its_checkpoint_goes_on_with_the_same_losses(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    values = {
        "model_name_or_path": tiny_model("qwen2_vl"),
        "dataset_name": chat_rows(tmp_path / "data", 24),
        "max_steps": 8,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "bf16": "false",
        "logging_steps": 1,
        "save_steps": 4,
        "report_to": "none",
    }
    train({**values, "output_dir": whole})
    checkpoint = whole / "checkpoint-4"
    train({**values, "output_dir": resumed, "resume_from_checkpoint": checkpoint})
    assert losses(resumed) == losses(whole)[4:]
