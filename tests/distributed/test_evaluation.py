"""Held-out loss, best weights and answers on two ranks, where the last batch is uneven."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.held_out import plain_loss
from tests.support.launch import accelerate_launch, flags
from tests.support.rows import chat_rows


@pytest.mark.parametrize("preset", [pytest.param("ddp", marks=pytest.mark.slow), "deepspeed_zero3"])
def test_held_out_loss_and_best_weights_are_those_of_one_process(
    tmp_path: Path, tiny_model: Callable[[str], Path], preset: str
) -> None:
    out = tmp_path / "out"
    values = {
        "model_name_or_path": tiny_model("qwen2_vl"),
        "dataset_name": chat_rows(tmp_path / "data", 15),
        "output_dir": out,
        # Seven rows over two ranks in batches of two: one rank's last batch is filled up.
        "eval_size": 7,
        "per_device_eval_batch_size": 2,
        "per_device_train_batch_size": 4,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 3,
        "load_best_model_at_end": True,
        "eval_generation_tokens": 4,
        # So high that every step makes it worse.
        "learning_rate": 3.0,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "bf16": False,
    }

    done = accelerate_launch(flags(values), preset=preset, processes=2)

    assert done.returncode == 0, done.stderr[-4000:]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [record["eval_loss"] for record in records if "eval_loss" in record]
    assert len(losses) == 3
    best = losses.index(min(losses))
    assert best < 2
    assert losses[best] == pytest.approx(plain_loss(out).loss, rel=1e-5)
    kept = load_file(out / f"checkpoint-{best + 1}" / "model.safetensors")
    saved = load_file(out / "model.safetensors")
    assert all(saved[name].equal(kept[name]) for name in kept)
    answers = [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]
    assert [answer["step"] for answer in answers] == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    assert f"saved the model to {out}" in done.stdout

    again = tmp_path / "again"
    values |= {"output_dir": again, "save_strategy": "no", "load_best_model_at_end": False}
    if preset == "ddp":  # the first rank cannot write; both go on without
        again.mkdir()
        (again / "generations").write_text("in the way")
    else:
        values["eval_generations"] = 0
    done = accelerate_launch(flags(values), preset=preset, processes=2)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("held-out rows are not answered any more") == (preset == "ddp")
    assert not (again / "generations.jsonl").exists()
    assert losses_of(again) == losses_of(out)


def losses_of(out: Path) -> list[float]:
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [record[name] for record in records for name in ("loss", "eval_loss") if name in record]
