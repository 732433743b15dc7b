"""Packed and padded, on one rank and on two: one learning curve."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.support.launch import ENTRY, accelerate_launch, flags, losses
from tests.support.rows import mixed_rows

STEPS = 30

Curve = Callable[..., list[float]]


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Curve:
    """The losses of a run over rows with none to three images; each kind trains once."""
    folder = tmp_path_factory.mktemp("packing")
    # Twenty-two rows make steps of eight, eight and six: an epoch's last is a smaller one.
    data = mixed_rows(folder / "data", 22)

    @cache
    def trained(batching: str, preset: str = "", family: str = "qwen2_vl") -> list[float]:
        output = folder / f"{family}-{batching}-{preset or 'alone'}"
        values = {
            "model_name_or_path": tiny_model(family),
            "dataset_name": data,
            "output_dir": output,
            "batching": batching,
            "per_device_train_batch_size": 2 if preset else 4,
            "gradient_accumulation_steps": 2,
            "max_steps": STEPS,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": False,
        }
        if preset:
            done = accelerate_launch(flags(values), preset=preset, processes=2)
        else:
            command = [sys.executable, "-m", ENTRY, *flags(values), "--use_cpu"]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=240, env=dict(os.environ)
            )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert f"batching: {batching}" in done.stdout
        found = losses(output)
        assert len(found) == STEPS
        return found

    return trained


@pytest.mark.parametrize("preset", ["", "ddp", "deepspeed_zero3"], ids=["alone", "ddp", "zero3"])
def test_packed_run_has_the_curve_of_the_padded_one(curve: Curve, preset: str) -> None:
    padded = curve("pad")

    assert padded[-1] < 0.9 * padded[0]
    assert curve("pack", preset) == pytest.approx(padded, rel=1e-4)


def test_padded_run_on_two_ranks_has_the_curve_of_one(curve: Curve) -> None:
    assert curve("pad", "ddp") == pytest.approx(curve("pad"), rel=1e-4)
