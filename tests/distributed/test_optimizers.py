"""Every optimizer of `optim` under real DeepSpeed: it is the one that trains, or it is refused."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sailplan.train.optimizer_check import _OFFLOADED, OPTIM_ARGS
from tests.support import patience
from tests.support.launch import free_port

SCRIPT = Path(__file__).with_name("optimizers_rank.py")
GPU_ONLY = {"paged_ademamix_8bit", "paged_ademamix_32bit"}
CLASSES = {"adamw": "AdamW", "lion": "Lion", "rmsprop": "RMSprop", "ademamix": "AdEMAMix"}
CLASSES |= {"sgd": "SGD", "adafactor": "Adafactor"}
pytestmark = pytest.mark.slow


def train(folder: Path, out: Path, zero: dict[str, Any]) -> dict[str, Any]:
    """Runs the script as the one rank there is."""
    env = {**os.environ, "ACCELERATE_USE_DEEPSPEED": "true", "RANK": "0", "LOCAL_RANK": "0"}
    env |= {"WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, str(SCRIPT), str(folder), str(out), json.dumps(zero)]
    done = patience.run(command, timeout=300, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads((out / "report.json").read_text()))


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_trains_with_the_optimizer_that_is_written(
    tiny_model: Callable[[str], Path], tmp_path: Path, stage: int
) -> None:
    report = train(tiny_model("llama"), tmp_path, {"stage": stage})

    trained = {name: found for name, found in report.items() if isinstance(found, list)}
    assert trained.keys() == OPTIM_ARGS.keys() - GPU_ONLY - {"adagrad"}
    for name, (kind, learns) in trained.items():
        word = next(word for word in CLASSES if word in name)
        assert (kind, learns) == (CLASSES[word], True), name
    assert "under DeepSpeed" in report["adagrad"]


def test_offload_refuses_what_it_would_replace(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}}
    report = train(tiny_model("llama"), tmp_path, zero)

    trained = {name: found for name, found in report.items() if isinstance(found, list)}
    assert trained == {name: ["DeepSpeedCPUAdam", True] for name in _OFFLOADED}
    assert "would train with its own AdamW instead" in report["sgd"]
