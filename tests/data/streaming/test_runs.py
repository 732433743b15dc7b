"""Training on a stream: going on, bad rows, several ranks, micro batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.launch import Entry, accelerate_launch, flags, losses
from tests.support.rows import chat_rows


def settings(tmp_path: Path, tiny_model: Callable[[str], Path], rows: int) -> dict[str, Any]:
    data = tmp_path / "data"
    return {
        "model_name_or_path": tiny_model("qwen2_vl"),
        "dataset_name": data / "train.jsonl" if data.is_dir() else chat_rows(data, rows),
        "dataset_streaming": True,
        "per_device_train_batch_size": 2,
        "max_steps": 8,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
    }


def test_run_that_goes_on_sees_the_rows_of_an_undisturbed_one(
    tmp_path: Path, tiny_model: Callable[[str], Path], entry: Entry
) -> None:
    values = settings(tmp_path, tiny_model, 11) | {"eval_size": 3, "eval_strategy": "steps"}
    values |= {"gradient_accumulation_steps": 2, "dataloader_num_workers": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    end = entry(flags(values | {"output_dir": whole}))
    assert end.code == 0, end.err
    first = values | {"output_dir": parts, "save_steps": 5, "max_steps": 8}
    end = entry(flags(first))
    assert end.code == 0, end.err

    end = entry(flags(first | {"resume_from_checkpoint": parts / "checkpoint-5"}))

    assert end.code == 0, end.err
    assert losses(parts)[-3:] == losses(whole)[-3:] == losses(parts)[5:8]
    assert len(set(losses(whole))) == 8


def test_bad_row_of_a_stream_is_one_line_with_its_number(
    tmp_path: Path, tiny_model: Callable[[str], Path], entry: Entry
) -> None:
    values = settings(tmp_path, tiny_model, 4) | {"output_dir": tmp_path / "out"}
    file = tmp_path / "data" / "train.jsonl"
    bad = {"messages": [{"role": "user", "content": "a"}], "images": []}
    file.write_text(file.read_text() + json.dumps(bad) + "\n")
    for workers in (0, 2):
        end = entry(flags(values | {"dataloader_num_workers": workers}))
        assert end.code == 4
        assert end.err.endswith(
            "error: train row 4 (from 0): there is no assistant turn to train on; add an answer, "
            "or drop it\n"
        )


def test_two_ranks_train_on_a_stream_with_an_uneven_end(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    values = settings(tmp_path, tiny_model, 9) | {"output_dir": tmp_path / "out"}
    values |= {
        "dataloader_num_workers": 1,
        "eval_size": 2,
        "eval_strategy": "steps",
        "eval_steps": 4,
    }
    values.pop("use_cpu")  # the launcher writes it

    done = accelerate_launch(flags(values), preset="ddp", processes=2)

    assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(tmp_path / "out")) == 8
