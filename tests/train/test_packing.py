"""Packed runs with the settings that a user may add: the curve of the padded run each time."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.launch import Entry, flags, losses
from tests.support.rows import chat_rows, mixed_rows

Curve = Callable[..., list[float]]

LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0, "learning_rate": 1e-2}
OTHER_ORDERS = ("sequential", "batch_rebalance")
KWARGS = "gradient_checkpointing_kwargs"


@pytest.fixture
def curve(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[[str], Path],
    entry: Entry,
) -> Curve:
    # Eleven rows make a step of eight and one of three, over four micro batches.
    data = mixed_rows(tmp_path / "data", 11)

    def trained(batching: str | None, **values: Any) -> list[float]:
        output = tmp_path / (batching or "unsaid")
        given = {
            "model_name_or_path": tiny_model("qwen2_vl"),
            "dataset_name": data,
            "output_dir": output,
            "batching": batching,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "max_steps": 3,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
        } | values
        end = entry(flags({name: value for name, value in given.items() if value is not None}))
        assert end.code == 0, end.err[-3000:]
        assert batching is None or f"batching: {batching}" in end.out
        return losses(output)

    return trained


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"label_smoothing_factor": 0.1}, id="label_smoothing"),
        pytest.param({"loss_type": "dft"}, id="dft"),
        pytest.param(LORA, id="lora", marks=pytest.mark.slow),
        pytest.param({**LORA, "load_in_4bit": True}, id="qlora"),
        pytest.param({"gradient_checkpointing": True}, id="checkpointing", marks=pytest.mark.slow),
        pytest.param(
            {"gradient_checkpointing": True, KWARGS: '{"use_reentrant": true}'}, id="reentrant"
        ),
        pytest.param({"pad_to_multiple_of": 64}, id="multiple"),
        pytest.param({"dataset_streaming": True, "shuffle_buffer_size": 5}, id="streamed"),
    ],
)
def test_packed_run_has_the_curve_of_the_padded_one(curve: Curve, values: dict[str, Any]) -> None:
    padded = curve("pad", **values)

    assert len(padded) == 3
    assert padded[2] != padded[0]
    # TRL trains QLoRA's adapters in bfloat16: an update rounds up here and down there.
    tolerance = 1e-4 if values.get("load_in_4bit") else 1e-5
    assert curve("pack", **values) == pytest.approx(padded, rel=tolerance)


def test_noise_on_embeddings_is_trained_with_packed(curve: Curve) -> None:
    found = curve("pack", neftune_noise_alpha=5.0)
    assert all(map(math.isfinite, found))


@pytest.mark.parametrize(
    "strategy",
    ["group_by_length", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHER_ORDERS)],
)
def test_other_orders_of_samples_are_packed(curve: Curve, strategy: str) -> None:
    padded = curve("pad", train_sampling_strategy=strategy)
    assert curve("pack", train_sampling_strategy=strategy) == pytest.approx(padded, rel=1e-5)


def test_rows_that_fill_no_step_are_an_error_where_the_rest_is_left_out(
    tmp_path: Path, tiny_model: Callable[[str], Path], entry: Entry
) -> None:
    values = {
        "model_name_or_path": tiny_model("llama"),
        "dataset_name": chat_rows(tmp_path / "data", 5, images=False),
        "output_dir": tmp_path / "out",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "dataloader_drop_last": True,
        "report_to": "none",
        "use_cpu": True,
    }
    end = entry(flags(values))
    assert end.code != 0
    assert "5 rows fill no step of 8 samples" in end.err
