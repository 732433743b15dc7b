"""The same model, data, seed and global batch give the same curve under every strategy."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.support.launch import accelerate_launch, flags, losses
from tests.support.rows import chat_rows

STEPS = 20
GLOBAL_BATCH = 4
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"use_peft": "true", "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0},
}
STRATEGIES = {
    "ddp": ("ddp", 2),
    "zero1": ("deepspeed_zero1", 2),
    "zero2": ("deepspeed_zero2", 2),
    "zero3": ("deepspeed_zero3", 2),
}

FIRST = [("full", "ddp"), ("full", "zero3"), ("lora", "zero2"), ("lora", "zero3")]
"""What is not slow."""


class Curves:
    """Trains once per question and remembers the curve."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.data = chat_rows(folder / "data", 48)
        self.known: dict[tuple[str, str, int, int], list[float]] = {}

    def curve(self, method: str, preset: str, processes: int, micro_batch: int) -> list[float]:
        """Returns the loss of each of the 20 steps."""
        question = (method, preset, processes, micro_batch)
        if question not in self.known:
            self.known[question] = self._train(*question)
        return self.known[question]

    def _train(self, method: str, preset: str, processes: int, micro_batch: int) -> list[float]:
        output = self.folder / f"{method}-{preset}-{processes}-{micro_batch}"
        values = {
            "model_name_or_path": self.model,
            "dataset_name": self.data,
            "output_dir": output,
            "max_steps": STEPS,
            "learning_rate": 1e-3 if method == "full" else 1e-2,
            "per_device_train_batch_size": micro_batch,
            "gradient_accumulation_steps": GLOBAL_BATCH // (micro_batch * processes),
            "bf16": "false",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            **METHODS[method],
        }
        done = accelerate_launch(flags(values), preset=preset, processes=processes)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return losses(output)


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Curves:
    return Curves(tmp_path_factory.mktemp("parity"), tiny_model("qwen2_vl"))


def assert_same(found: list[float], expected: list[float]) -> None:
    assert len(found) == len(expected) == STEPS
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_loss_falls_on_one_process(curves: Curves, method: str) -> None:
    curve = curves.curve(method, "single_gpu", 1, 4)
    assert len(curve) == STEPS
    assert curve[-1] < 0.9 * curve[0]


@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_accumulation_equals_larger_micro_batch(curves: Curves, method: str) -> None:
    assert_same(curves.curve(method, "single_gpu", 1, 1), curves.curve(method, "single_gpu", 1, 4))


@pytest.mark.slow
def test_offload_gives_the_curve_of_one_process(curves: Curves) -> None:
    assert_same(
        curves.curve("full", "deepspeed_zero3_offload", 2, 2),
        curves.curve("full", "single_gpu", 1, 4),
    )


@pytest.mark.parametrize(
    ("method", "strategy"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case not in FIRST))
        for case in product(METHODS, STRATEGIES)
    ],
)
def test_strategy_gives_the_curve_of_one_process(
    curves: Curves, method: str, strategy: str
) -> None:
    preset, processes = STRATEGIES[strategy]
    assert_same(
        curves.curve(method, preset, processes, 2), curves.curve(method, "single_gpu", 1, 4)
    )
