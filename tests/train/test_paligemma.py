"""PaliGemma from its published form, without a chat template, to a merged model that answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from sailplan.evaluate.losses import row_losses
from sailplan.evaluate.speaker import load_speaker
from sailplan.inspect.inspection import inspect_run
from sailplan.merge.job import Options, prepare
from sailplan.merge.output import carry_out
from sailplan.run.config import Run
from tests.support.compared import adapter_run, compared, here, texts
from tests.support.held_out import encoded_rows
from tests.support.launch import Entry, flags, losses
from tests.support.rows import chat_rows, mixed_rows

LORA = {"use_peft": True, "lora_r": 8}


@pytest.fixture(scope="module")
def base(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as published ones are: without a chat template."""
    folder = tmp_path_factory.mktemp("base") / "paligemma"
    shutil.copytree(tiny_model("paligemma"), folder)
    (folder / "chat_template.jinja").unlink()
    assert AutoProcessor.from_pretrained(folder).chat_template is None
    return folder


def answered(model: Any, processor: Any, picture: Path) -> tuple[str, torch.Tensor]:
    """What the stock model says to a picture, and the logits of its first word."""
    inputs = processor(
        text=f"{processor.image_token}Which colour is this?",
        images=[Image.open(picture)],
        return_tensors="pt",
    )
    inputs.pop("labels")
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
        said = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    text = processor.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip(), logits


@pytest.mark.parametrize("method", [{}, LORA], ids=["full", "lora"])
def test_trained_and_merged_model_answers_as_trained(
    entry: Entry, base: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    given = {
        "model_name_or_path": base,
        "dataset_name": chat_rows(tmp_path / "data", 28),
        "output_dir": tmp_path / "out",
        "eval_size": 4,
        "eval_strategy": "epoch",
        "per_device_train_batch_size": 4,
        "num_train_epochs": 4,
        "learning_rate": 3e-3 if not method else 2e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
    }

    end = entry(flags(given | method))

    assert end.code == 0, end.err
    assert "chat template: paligemma, since the model has none" in end.out
    assert "warning: paligemma" not in end.out  # of ids that its own processor makes otherwise
    assert "batching: pad (paligemma cannot be packed" in end.out
    series = losses(tmp_path / "out")
    assert sum(series[-4:]) < 0.5 * sum(series[:4])

    folder = tmp_path / "out"
    if method:
        folder = tmp_path / "merged"
        carry_out(prepare(tmp_path / "out", Options()), folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    text, logits = answered(model, processor, tmp_path / "data" / "0.png")
    speaker = load_speaker(str(tmp_path / "out"), use_cpu=True)
    trained_text, trained_logits = answered(
        speaker.model, speaker.processor, tmp_path / "data" / "0.png"
    )
    torch.testing.assert_close(logits, trained_logits, rtol=0, atol=1e-4)
    assert text == trained_text
    assert text.split()[0] in ("red", "green", "blue")

    run = Run.from_file(tmp_path / "out" / "train.yaml")
    saved = {**run.explicit, "processor_name_or_path": str(tmp_path / "out")}
    rows, collator = encoded_rows(replace(run, explicit=saved))
    found = dict(row_losses(model, collator, rows)).values()
    mean = sum(row.loss_sum for row in found) / sum(row.num_tokens for row in found)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    said = [line["eval_loss"] for line in map(json.loads, lines) if "eval_loss" in line]
    assert mean == pytest.approx(said[-1], abs=1e-4)


def test_run_with_rows_without_images_is_refused(entry: Entry, base: Path, tmp_path: Path) -> None:
    values = {"model_name_or_path": base, "output_dir": tmp_path / "out", "use_cpu": True}
    data = mixed_rows(tmp_path / "data", 6)

    end = entry(flags({**values, "dataset_name": data, "bf16": False, "report_to": "none"}))

    assert end.code == 4
    assert "no image, and paligemma takes no text without one; drop the row" in end.err


@pytest.mark.usefixtures("datasets_cache")
def test_inspection_shows_what_is_trained_and_finds_nothing(base: Path, tmp_path: Path) -> None:
    data = chat_rows(tmp_path / "data", 6)

    found = inspect_run(
        Run.from_flags(["--model_name_or_path", str(base), "--dataset_name", str(data)])
    )

    assert found.findings == ()
    assert any("chat template: paligemma" in note for note in found.notes)


@pytest.mark.usefixtures("datasets_cache")
def test_published_model_is_planned_without_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAILPLAN_CACHE", str(tmp_path / "plans"))
    file = tmp_path / "run.yaml"
    file.write_text(
        "model_name_or_path: google/paligemma-3b-pt-224\n"
        f"dataset_name: {chat_rows(tmp_path / 'data', 12)}\n"
        f"output_dir: {tmp_path}/out\nuse_peft: true\nper_device_train_batch_size: 2\n"
        "gradient_checkpointing: true\nlaunch: {gpu: L4}\n"
    )

    code, out, err = here("plan", str(file), "--json")

    assert code == 0, err
    plan = json.loads(out)
    assert "cannot be packed" in out
    assert plan["fits"] is True


@pytest.mark.usefixtures("datasets_cache")
def test_base_and_tuned_are_compared(base: Path, tmp_path: Path) -> None:
    run = adapter_run(tmp_path, base, learning_rate=5e-2, max_steps=9)

    found, _, _ = compared(run, "--greedy")

    assert [side.name for side in found.sides] == ["base", "tuned"]
    assert any(row["base"] != row["tuned"] for row in texts(found).values())
    for row in found.rows:
        assert row.prompt == "<image>Which colour is this?"
        assert row.scores["tuned"].keys() >= {"loss", "rouge_l"}
