"""Rows that break under one of two ranks are told of by both, and end both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.launch import accelerate_launch, flags, losses
from tests.support.plant import planted
from tests.support.rows import chat_rows

CUT = (0, 3, 5)
"""In their own order, these rows go to both ranks."""


@pytest.mark.parametrize(
    ("preset", "most"),
    [
        ("ddp", 3),
        pytest.param("ddp", 2, marks=pytest.mark.slow),
        pytest.param("deepspeed_zero2", 2, marks=pytest.mark.slow),
        pytest.param("deepspeed_zero3", 3, marks=pytest.mark.slow),
    ],
)
def test_broken_rows_of_both_ranks_are_counted_together(
    tmp_path: Path, tiny_model: Callable[[str], Path], preset: str, most: int
) -> None:
    data, out = chat_rows(tmp_path / "data", 8), tmp_path / "out"
    values = {
        "model_name_or_path": tiny_model("qwen2_vl"),
        "dataset_name": data,
        "output_dir": out,
        "per_device_train_batch_size": 1,
        "num_train_epochs": 1,
        "max_bad_samples": most,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "save_first_step": False,
        "dataloader_num_workers": 1,
        "report_to": "none",
        "bf16": False,
    }
    env = planted(
        what="rot_files", rank=0, cut=[str(data.parent / f"{row}.png") for row in CUT], swapped={}
    )

    done = accelerate_launch(
        flags(values),
        preset=preset,
        processes=2,
        env={**env, "HF_DATASETS_CACHE": str(tmp_path / "cache")},
    )

    records = list(map(json.loads, (out / "metrics.jsonl").read_text().splitlines()))
    told = sorted((one["bad_row"], one["step"]) for one in records if "bad_row" in one)
    assert told == [(f"train row {row} (from 0)", row // 2 + 1) for row in CUT]
    if most == 3:
        assert done.returncode == 0, done.stderr[-4000:]
        assert len(losses(out)) == 4
        assert done.stdout.count("left out at step") == 3
        return
    assert "exitcode  : 4" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(
        "error: 3 rows broke while training: train row 0 (from 0): image '0.png'"
    )
    assert "allowed: 2 (max_bad_samples)" in line
