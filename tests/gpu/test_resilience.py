"""Runs on CUDA devices that come back: killed, without memory, hung; the lines of the CPU tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sailplan.run.paths import RunPaths
from sailplan.supervise.attempt_log import read_attempts
from tests.support.killed import launched
from tests.support.kills import chain, undisturbed
from tests.support.plant import planted
from tests.support.rows import chat_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def values(tmp_path: Path, tiny_model: Callable[[str], Path]) -> dict[str, Any]:
    return {
        "model_name_or_path": str(tiny_model("llama")),
        "dataset_name": str(chat_rows(tmp_path / "rows", 24, images=False)),
        "max_steps": 12,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "bf16": False,
        "logging_steps": 1,
        "save_steps": 3,
        "report_to": "none",
    }


def test_killed_run_comes_back_with_the_same_losses(tmp_path: Path, values: dict[str, Any]) -> None:
    exact = {**values, "full_determinism": True}
    expected = undisturbed(tmp_path, exact, "single", cpu=False)
    kills = chain(
        tmp_path,
        exact,
        "single",
        [("rank 0", True)],
        expected=expected,
        chance=random.Random(0),
        cpu=False,
    )
    assert [(kill.exact, kill.left) for kill in kills] == [(True, [])]


def test_out_of_memory_of_the_card_goes_to_the_next_plan(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    out, file = RunPaths(tmp_path / "out"), tmp_path / "run.yaml"
    fields = {**values, "output_dir": str(out.path), "on_oom": "next_plan"}
    file.write_text(yaml.safe_dump({**fields, "launch": {"gpus_per_node": 1}}))
    fault = planted(what="eat_card", most_tokens=300)
    with launched(file, "--no-preflight", env=fault) as run:
        assert run.end() == 0, run.text
    assert [one.kind for one in read_attempts(out.attempts_file)] == ["oom", "finished"]
