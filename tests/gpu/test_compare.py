"""Comparisons on CUDA devices: QLoRA on one card, a rank on each; the lines of the CPU tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sailplan.run.metrics import read_metrics
from tests.support.compared import adapter_run, compared, keys, texts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("quantised", [False, True], ids=["lora", "qlora"])
def test_comparison_on_the_gpu_has_the_loss_of_the_runs_evaluation(
    tmp_path: Path, tiny_model: Callable[[str], Path], quantised: bool
) -> None:
    run = adapter_run(
        tmp_path, tiny_model("qwen2_vl"), load_in_4bit=quantised, launch={"gpus_per_node": 1}
    )
    found, _, _ = compared(run, "--greedy")
    evaluations = [one for one in read_metrics(run / "metrics.jsonl") if "eval_loss" in one]
    (loss,) = (score for score in found.scores if score.name == "loss")
    assert loss.sides["tuned"].value == pytest.approx(evaluations[-1]["eval_loss"], abs=1e-3)
    assert len(keys(run)) == 4 * 12
    assert [row["base"] for row in texts(found).values()]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_rank_on_each_gpu_gives_the_rows_of_one(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    run = adapter_run(tmp_path, tiny_model("qwen2_vl"), launch={"gpus_per_node": 2})
    two, _, _ = compared(run, "--greedy")
    assert len(list((run / "compare").glob("journal-*.jsonl"))) == 2
    shutil.rmtree(run / "compare")
    one, _, _ = compared(run, "--greedy", "--launch.gpus_per_node", "1")
    assert texts(two) == texts(one)
