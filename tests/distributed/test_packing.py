"""Packed and padded, on one rank and on two, with images on one rank alone: one curve."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sailplan.files import preset as preset_file
from tests.support import patience
from tests.support.launch import ENTRY, accelerate_launch, flags, free_port, losses
from tests.support.rows import draw, mixed_rows

STEPS = 30
SAVED = 25  # in the middle of the ninth epoch
SCRIPT = Path(__file__).with_name("packing_ranks.py")

Curve = Callable[..., list[float]]


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Curve:
    """The losses of a run over rows with none to three images; each kind trains once."""
    folder = tmp_path_factory.mktemp("packing")
    # Twenty-two rows make steps of eight, eight and six: an epoch's last is a smaller one.
    data = mixed_rows(folder / "data", 22)

    @cache
    def trained(
        batching: str, preset: str = "", family: str = "qwen2_vl", resumes: bool = False
    ) -> list[float]:
        output = folder / f"{family}-{batching}-{preset or 'alone'}"
        saves = preset == "ddp" and batching == "pack"
        values: dict[str, Any] = {
            "model_name_or_path": tiny_model(family),
            "dataset_name": data,
            "output_dir": output,
            "batching": batching,
            "per_device_train_batch_size": 2 if preset else 4,
            "gradient_accumulation_steps": 2,
            "max_steps": STEPS,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "steps" if saves else "no",
            "save_steps": SAVED,
            "report_to": "none",
            "bf16": False,
        }
        if resumes:
            values["resume_from_checkpoint"] = output / f"checkpoint-{SAVED}"
            output = values["output_dir"] = folder / "resumed"
        if preset:
            done = accelerate_launch(flags(values), preset=preset, processes=2)
        else:
            command = [sys.executable, "-m", ENTRY, *flags(values), "--use_cpu"]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=240, env=dict(os.environ)
            )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert f"batching: {batching}" in done.stdout
        found = losses(output)
        assert len(found) == STEPS - (SAVED if resumes else 0)
        return found

    return trained


@pytest.mark.parametrize("preset", ["", "ddp", "deepspeed_zero3"], ids=["alone", "ddp", "zero3"])
def test_packed_run_has_the_curve_of_the_padded_one(curve: Curve, preset: str) -> None:
    padded = curve("pad")

    assert padded[-1] < 0.9 * padded[0]
    assert curve("pack", preset) == pytest.approx(padded, rel=1e-4)


@pytest.mark.slow
def test_padded_run_on_two_ranks_has_the_curve_of_one(curve: Curve) -> None:
    assert curve("pad", "ddp") == pytest.approx(curve("pad"), rel=1e-4)


def test_packed_run_goes_on_from_the_middle_of_an_epoch_with_the_same_losses(curve: Curve) -> None:
    undisturbed = curve("pack", "ddp")
    assert curve("pack", "ddp", resumes=True) == pytest.approx(undisturbed[SAVED:], rel=1e-6)


@pytest.fixture(scope="module")
def one_sided(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]
) -> Callable[[str], tuple[list[float], list[list[int]]]]:
    """The losses of a run whose images come to the first rank alone, and the images of each."""
    folder = tmp_path_factory.mktemp("one_sided")
    lines = []
    for number in range(9):  # the last of five steps has a single sample, with an image
        images = [] if number % 2 else [f"{number}.png"]
        for name in images:
            draw(folder / name, colour="red", size=(90 + number, 70))
        words = "a red ellipse on white" if images else "nothing to be seen"
        messages = [
            {"role": "user", "content": "What is this?"},
            {"role": "assistant", "content": " ".join([words] * (1 + number // 3))},
        ]
        lines.append(json.dumps({"messages": messages, "images": images}))
    (folder / "train.jsonl").write_text("\n".join(lines))

    @cache
    def trained(preset: str) -> tuple[list[float], list[list[int]]]:
        output, processes = folder / (preset or "alone"), 2 if preset else 1
        values = {
            "model_name_or_path": tiny_model("qwen2_vl"),
            "dataset_name": folder / "train.jsonl",
            "output_dir": output,
            "per_device_train_batch_size": 2 // processes,
            "train_sampling_strategy": "sequential",
            "num_train_epochs": 1,
            "learning_rate": 1e-2,
            "optim": "sgd",
            "dataloader_num_workers": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": False,
        }
        command = [sys.executable]
        if preset:
            command += ["-m", "accelerate.commands.launch", "--config_file"]
            command += [str(preset_file(preset)), "--num_processes", "2"]
            command += ["--main_process_port", str(free_port())]
        command += [str(SCRIPT), *flags(values), "--use_cpu"]
        done = patience.run(command, timeout=240)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert "batching: pack" in done.stdout
        assert "warning" not in done.stdout
        images = [json.loads((output / f"images{r}.json").read_text()) for r in range(processes)]
        return losses(output), [of_rank[-5:] for of_rank in images]

    return trained


@pytest.mark.parametrize("preset", [pytest.param("ddp", marks=pytest.mark.slow), "deepspeed_zero3"])
def test_run_with_images_on_one_rank_alone_has_the_curve_of_one_process(
    one_sided: Callable[[str], tuple[list[float], list[list[int]]]], preset: str
) -> None:
    expected, together = one_sided("")
    assert together == [[1] * 5]

    found, of_ranks = one_sided(preset)

    assert of_ranks == [[1] * 5, [0] * 5]
    assert found == pytest.approx(expected, rel=1e-5)
