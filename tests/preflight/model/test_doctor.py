"""`sailplan doctor --model`: what training rests on, tried on a small copy of the model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sailplan.preflight.model import reading, trial
from sailplan.run.config import Run
from tests.support.tiny import FAMILIES, MORE_FAMILIES, TEXT_FAMILIES

Folders = Callable[[str], Path]

_OTHERS = sorted({*FAMILIES, *MORE_FAMILIES, *TEXT_FAMILIES} - {"qwen2_vl"})


def doctor(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """Runs the doctor; returns its exit code and its checks by name."""
    done = subprocess.run(
        [sys.executable, "-m", "sailplan", "doctor", "--model", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.stdout, done.stderr
    return done.returncode, {line["check"]: line for line in json.loads(done.stdout)["checks"]}


def read(folder: Path) -> reading.Model:
    return reading.read(Run(explicit={"model_name_or_path": str(folder), "use_cpu": True}))


@pytest.mark.parametrize(
    "family", ["qwen2_vl", *(pytest.param(name, marks=pytest.mark.slow) for name in _OTHERS)]
)
def test_model_of_a_known_family_is_proven(tiny_model: Folders, family: str) -> None:
    code, found = doctor(tiny_model(family))
    wrong = {name: line for name, line in found.items() if line["mark"] == "failed"}
    assert not wrong
    assert code == 0
    packs = found["batching"]["text"].startswith("pack")
    assert ("a packed row gives what" in found["training"]["text"]) == packs
    assert "merged logits are off by" in found["merging"]["text"]
    assert (found["image tokens"]["mark"] == "ok") == (family not in TEXT_FAMILIES)


def test_model_that_is_not_there_is_told_and_nothing_is_tried(tmp_path: Path) -> None:
    code, found = doctor(tmp_path / "nowhere")
    assert code == 5
    assert "there is no model folder" in found["model"]["text"]
    marks = {name: line["mark"] for name, line in found.items() if name != "model"}
    assert set(marks.values()) == {"not checked"}


def test_model_beside_a_run_is_refused() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sailplan",
            "doctor",
            "run.yaml",
            "--model",
            "models/mine",
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --model beside run.yaml")


def test_vision_tower_under_an_unknown_name_is_told_with_its_modules(tiny_model: Folders) -> None:
    model = read(tiny_model("llava"))
    assert reading.parts(model).mark == "ok"
    blind = replace(model, family=replace(model.family, vision_prefixes=("model.eyes",)))
    found = reading.parts(blind)
    assert found.mark == "failed"
    assert "known as its vision tower; it has " in found.text
    assert "model.vision_tower" in found.text


def test_answers_that_no_token_ends_are_told(tiny_model: Folders) -> None:
    model = read(tiny_model("llama"))
    assert reading.labels(model).mark == "ok"
    model.processor.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: "
        "{% generation %}{{ message['content'][0]['text'] }}{% endgeneration %} {% endfor %}"
    )
    model = read_again(model)
    found = reading.labels(model)
    assert found.mark == "failed"
    assert found.text.startswith("trained on ")


def read_again(model: reading.Model) -> reading.Model:
    """Returns the model with an encoder that has not read the template yet."""
    from sailplan.data.encode import Encoder

    return replace(model, encoder=Encoder.of(model.run, model.processor, model.family))


def test_image_that_takes_other_tokens_than_counted_is_told(tiny_model: Folders) -> None:
    model = read(tiny_model("qwen2_vl"))
    assert reading.image_tokens(model).mark == "ok"
    model.encoder.expander._known[((64, 48), False)] = "<|image_pad|>" * 5
    found = reading.image_tokens(model)
    assert found.mark == "failed"
    assert found.text == ("an image of 64×48 pixels takes 4 of <|image_pad|>, and 5 were counted")


def test_adapter_that_does_not_fit_its_model_is_told(tiny_model: Folders, tmp_path: Path) -> None:
    shutil.copytree(tiny_model("llama"), tmp_path / trial.COPY)
    found = trial.merges(tmp_path, os.environ)
    assert found.mark == "failed"
    assert found.text.startswith("the small copy does not merge: ")
    assert found.detail
