"""A loss that is not finite on one of two ranks: both leave the step out, or both end before it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import differing, tensors_of
from tests.support.launch import accelerate_launch, flags, losses
from tests.support.plant import planted
from tests.support.rows import chat_rows


def settings(model: Path, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": model,
        "dataset_name": chat_rows(tmp_path / "data", 32, images=False),
        "output_dir": tmp_path / "out",
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 1,
        "save_first_step": False,
        "report_to": "none",
        "bf16": False,
        **changes,
    }


def rows_in(text: str) -> list[int]:
    return sorted(int(number) for number in re.findall(r"train row (\d+) \(from 0\)", text))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("deepspeed_zero3", {}),
        pytest.param("ddp", {}, marks=SLOW),
        pytest.param("deepspeed_zero2", {"bf16": True}, marks=SLOW),
        pytest.param("ddp", {"use_peft": True, "max_grad_norm": 0.0}, marks=SLOW),
        pytest.param("deepspeed_zero1", {}, marks=SLOW),
        pytest.param("deepspeed_zero1", {"bf16": True, "max_grad_norm": 0.0}, marks=SLOW),
        pytest.param("deepspeed_zero2", {"max_grad_norm": 0.0}, marks=SLOW),
        pytest.param("deepspeed_zero3", {"bf16": True, "use_peft": True}, marks=SLOW),
        pytest.param("deepspeed_zero3_offload", {"bf16": True}, marks=SLOW),
    ],
)
def test_skip_leaves_weights_optimizer_and_schedule_as_they_were(
    tmp_path: Path,
    tiny_model: Callable[[str], Path],
    preset: str,
    changes: dict[str, Any],
) -> None:
    values = settings(tiny_model("llama"), tmp_path, on_bad_loss="skip", **changes)
    # Of rank 1 the first micro batch, which it does not reduce at once under DDP.
    env = planted(what="bad_loss", rank=1, steps=[2])

    done = accelerate_launch(flags(values), preset=preset, processes=2, env=env)

    assert done.returncode == 0, done.stderr[-4000:]
    out = tmp_path / "out"
    first, second, third = (out / f"checkpoint-{step}" for step in (1, 2, 3))
    assert differing(first, second) == []
    assert differing(second, third)
    assert len(tensors_of(first)) > 10
    records = list(map(json.loads, (out / "metrics.jsonl").read_text().splitlines()))
    (skipped,) = [record for record in records if "skipped" in record]
    assert (skipped["step"], skipped["skipped"]) == (2, "the loss is nan on rank 1")
    assert len(rows_in(str(skipped["rows"]))) == 2
    assert rows_in(done.stdout) == rows_in(str(skipped["rows"]))
    assert [record["step"] for record in records if "loss" in record] == [1, 3, 4]
    assert all(1 < loss < 20 for loss in losses(out))


@pytest.mark.parametrize(
    ("preset", "plant"),
    [
        ("deepspeed_zero2", "bad_gradient"),
        pytest.param("ddp", "bad_loss", marks=SLOW),
        pytest.param("ddp", "bad_gradient", marks=SLOW),
        pytest.param("deepspeed_zero3", "bad_loss", marks=SLOW),
    ],
)
def test_stop_ends_both_ranks_before_the_step(
    tmp_path: Path, tiny_model: Callable[[str], Path], preset: str, plant: str
) -> None:
    values = settings(tiny_model("llama"), tmp_path)

    done = accelerate_launch(
        flags(values),
        preset=preset,
        processes=2,
        env=planted(what=plant, rank=1, steps=[2], micro_batch=1),
    )

    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if plant == "bad_loss":
        assert line.startswith("error: step 2: the loss is nan on rank 1; its rows: train row")
        assert len(rows_in(line)) == 2
    else:
        why = "step 2: the gradient is not finite, though each loss is; its rows: train row"
        assert line.startswith(f"error: {why}")
        assert len(rows_in(line)) == 8  # of both ranks
    assert "exitcode  : 8" in done.stderr
    names = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert names == ["checkpoint-1"]
