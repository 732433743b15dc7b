"""Frozen parts and learning rates of parts on two ranks, under real DDP and DeepSpeed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sailplan.files import preset
from tests.support import patience

SCRIPT = Path(__file__).with_name("parts_ranks.py")
Reports = Callable[..., list[dict[str, Any]]]
STRATEGIES = pytest.mark.parametrize(
    "strategy", ["ddp", pytest.param("deepspeed_zero2", marks=pytest.mark.slow), "deepspeed_zero3"]
)


@pytest.fixture(scope="module")
def reports(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """`reports("ddp")` is what each rank saw; the launch happens once."""

    @cache
    def launch(strategy: str) -> list[dict[str, Any]]:
        out = tmp_path_factory.mktemp(strategy)
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", str(preset(strategy)), "--num_processes", "2"]
        command += ["--main_process_port", "0", str(SCRIPT), str(tiny_model("llava")), str(out)]
        done = patience.run(command, timeout=240)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return [json.loads((out / f"rank{n}.json").read_text()) for n in (0, 1)]

    return launch


@STRATEGIES
def test_rates_of_parts_reach_their_tensors(reports: Reports, strategy: str) -> None:
    for report in reports(strategy):
        expected = {"vision_tower": 0.5, "projector": 2.0, "language_model": 1.0}
        assert report["rates"] == pytest.approx(expected, rel=1e-4)


@STRATEGIES
@pytest.mark.parametrize("reentrant", [False, True])
def test_frozen_tower_stays_and_costs_no_state_and_a_rate_of_zero_moves_nothing(
    reports: Reports, strategy: str, reentrant: bool
) -> None:
    copies = 2 if strategy == "ddp" else 1
    for report in reports(strategy):
        frozen = report[f"frozen {reentrant}"]
        assert frozen["moved"] == {
            "vision_tower": [0, 55],
            "projector": [0, 4],
            "language_model": [21, 21],
        }
        assert frozen["gradients"] == []
        assert frozen["state"] == copies * frozen["trainable"]


@STRATEGIES
@pytest.mark.parametrize("reentrant", [False, True])
def test_adapters_of_the_tower_all_change_at_the_rate_of_the_tower(
    reports: Reports, strategy: str, reentrant: bool
) -> None:
    for report in reports(strategy):
        if not reentrant and strategy == "deepspeed_zero3":
            assert "adapters False" not in report  # TRL makes it reentrant.
            continue
        assert report[f"adapters {reentrant}"]["moved"] == {
            "vision_tower": [24, 24],
            "projector": [0, 4],
            "language_model": [28, 28],
        }


@STRATEGIES
def test_dummy_images_are_needed_only_where_frozen_towers_are_sharded(
    reports: Reports, strategy: str
) -> None:
    # Where they are not, a step on an image and a step on words have gone together.
    assert [r["words"] for r in reports(strategy)] == 2 * [2 * [strategy == "deepspeed_zero3"]]


@STRATEGIES
def test_resume_keeps_the_rates_of_parts_on_two_ranks(reports: Reports, strategy: str) -> None:
    for report in reports(strategy):
        resumed = report["resumed"]
        assert resumed["initial"] == [4e-3, 4e-3, 8e-3, 8e-3]
        assert resumed["rates"][0] == resumed["rates"][1]
        assert [changed for changed, _ in resumed["moved"].values()] == [0, 0, 0]
