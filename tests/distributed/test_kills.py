"""Whoever is killed, and be it in a save: the run comes back, and its curve is the undisturbed one.

Here one kill a strategy; `benchmarks/resilience.py` has ten.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.kills import chain, undisturbed
from tests.support.rows import chat_rows

CASES = {
    "single": ("rank 0", {}),
    "ddp": ("launcher", {"use_peft": True, "lora_dropout": 0.2}),
    "zero2": ("rank 1", {"use_peft": True}),
    "zero3": ("all ranks", {}),
}


@pytest.mark.parametrize("strategy", CASES)
def test_run_killed_in_a_save_comes_back_with_the_same_curve_bit_for_bit(
    tmp_path: Path, tiny_model: Callable[[str], Path], strategy: str
) -> None:
    whom, fields = CASES[strategy]
    values = {
        "model_name_or_path": str(tiny_model("llama")),
        "dataset_name": str(chat_rows(tmp_path / "rows", 24, images=False)),
        "max_steps": 12,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "bf16": False,
        "logging_steps": 1,
        "save_steps": 3,
        "report_to": "none",
        **fields,
    }
    expected = undisturbed(tmp_path, values, strategy)
    kills = list(
        chain(
            tmp_path, values, strategy, [(whom, True)], expected=expected, chance=random.Random(0)
        )
    )
    assert [point[0] for point in expected] == list(range(1, 13))
    assert kills[0].in_save
    assert kills[0].exact
    assert kills[0].left == []
    assert kills[0].resumed_step == kills[0].whole_step
