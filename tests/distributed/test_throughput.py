"""Rates and counts of a run on two ranks are of both together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.launch import accelerate_launch, flags
from tests.support.lengths import token_counts
from tests.support.rows import chat_rows


def test_counts_on_two_ranks_are_those_of_the_data(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    model, data = tiny_model("qwen2_vl"), chat_rows(tmp_path / "data", 16)
    lengths = token_counts(model, data)
    out = tmp_path / "out"
    values = {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": out,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "dataloader_num_workers": 1,
        "bf16": False,
    }

    done = accelerate_launch(flags(values), preset="ddp", processes=2)

    assert done.returncode == 0, done.stderr[-4000:]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    assert [steps[1]["num_tokens"], steps[3]["num_tokens"]] == [sum(lengths), 2 * sum(lengths)]
    for before, step in zip([{"num_tokens": 0}, *steps], steps, strict=False):
        tokens = step["num_tokens"] - before["num_tokens"]
        # Eight samples a step, over both ranks.
        assert step["tokens_per_s"] / step["samples_per_s"] == pytest.approx(tokens / 8, rel=1e-3)
        assert 0 <= step["data_wait_share"] <= 1
        assert "mfu" not in step
