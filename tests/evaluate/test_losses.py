"""Losses outside of training: those of training's evaluation, and of each row by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sailplan.data.sample import Message, Part
from sailplan.evaluate.comparison import RowLoss
from sailplan.evaluate.losses import row_losses
from sailplan.evaluate.speaker import Speaker, load_speaker
from sailplan.merge.job import Options, prepare
from sailplan.merge.output import carry_out
from sailplan.model.positions import Positions
from sailplan.model.precision import mixed_precision
from sailplan.run.config import Run
from tests.support.held_out import encoded_rows
from tests.support.launch import Entry, flags
from tests.support.quantised import dequantises_any_rows
from tests.support.rows import chat_rows, mixed_rows
from tests.support.tiny import FAMILIES

text_rows = partial(chat_rows, images=False)
LORA = {"use_peft": True, "lora_r": 8, "learning_rate": 0.03}
QLORA = {**LORA, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


Train = Callable[..., Run]


@pytest.fixture(scope="module")
def train(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path], entry: Entry
) -> Train:
    """Trains a few steps, evaluates at the end, and returns the run."""

    def call(family: str, **values: Any) -> Run:
        folder = tmp_path_factory.mktemp("run")
        make = text_rows if family == "llama" else mixed_rows
        given = {
            "model_name_or_path": tiny_model(family),
            "dataset_name": make(folder / "data", 17),
            "output_dir": folder / "out",
            "eval_size": 7,
            "eval_strategy": "epoch",
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 3,
            "max_steps": 3,
            "learning_rate": 3e-3,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
        } | values
        end = entry(flags(given))
        assert end.code == 0, end.err
        return Run.from_file(folder / "out" / "train.yaml")

    return call


def losses(model: Any, run: Run, **options: Any) -> list[RowLoss]:
    rows, collator = encoded_rows(run)
    found = dict(row_losses(model, collator, rows, **options))
    return [found[index] for index in range(len(rows))]


def of_tokens(found: list[RowLoss]) -> float:
    return sum(row.loss_sum for row in found) / sum(row.num_tokens for row in found)


def evaluated(run: Run) -> dict[str, float]:
    """What the run's last evaluation has said."""
    lines = (Path(run.get("output_dir")) / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "eval_loss" in record][-1]


def speaker_of(run: Run) -> Speaker:
    return load_speaker(
        run.get("output_dir"), load_in_4bit=bool(run.get("load_in_4bit")), use_cpu=True
    )


@pytest.mark.parametrize(
    ("family", "method", "batching"),
    [
        pytest.param("llama", {}, "pad", id="llama-full-pad"),
        pytest.param("llama", LORA, "pack", id="llama-lora-pack"),
        pytest.param("llama", QLORA, "pad", id="llama-qlora-pad"),
        pytest.param("qwen2_vl", {}, "pack", id="qwen2_vl-full-pack"),
        pytest.param("qwen2_vl", LORA, "pad", id="qwen2_vl-lora-pad"),
        pytest.param("qwen2_vl", QLORA, "pack", id="qwen2_vl-qlora-pack"),
    ],
)
def test_loss_is_that_of_the_trainers_evaluation(
    train: Train, family: str, method: dict[str, Any], batching: str
) -> None:
    run = train(family, batching=batching, **method)

    found = losses(speaker_of(run).model, run, autocast=mixed_precision(run))

    said = evaluated(run)
    assert of_tokens(found) == pytest.approx(said["eval_loss"], abs=1e-4)
    accuracy = sum(row.num_top1 for row in found) / sum(row.num_tokens for row in found)
    assert accuracy == pytest.approx(said["eval_mean_token_accuracy"])


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_computed_together_have_the_loss_that_each_has_alone(
    tiny_model: Callable[[str], Path], tmp_path: Path, family: str, autocast: torch.dtype | None
) -> None:
    make = text_rows if family == "llama" else mixed_rows
    values = {"model_name_or_path": str(tiny_model(family)), "eval_size": 7, "use_cpu": True}
    run = Run(explicit={**values, "dataset_name": str(make(tmp_path, 17))})
    model: Any = load_speaker(str(tiny_model(family)), use_cpu=True).model

    found = losses(model, run, batch_size=3, autocast=autocast)

    rows, collator = encoded_rows(run)
    for row, expected in zip(found, rows, strict=True):
        batch = collator([expected])
        mixed = torch.autocast("cpu", autocast, enabled=autocast is not None)
        with torch.no_grad(), mixed:
            alone = model(**batch, use_cache=False)
        assert row.num_tokens == expected["trained"]
        tolerance = 1e-5 if autocast is None else 1e-2
        assert row.loss_sum / row.num_tokens == pytest.approx(alone.loss.item(), rel=tolerance)
        firsts = alone.logits[0, :-1].argmax(-1) == batch["labels"][0, 1:]
        assert row.num_top1 == firsts.sum() or autocast is not None


@pytest.mark.parametrize("family", ["llama", "qwen2_vl"])
def test_rows_packed_into_one_have_the_loss_of_padded_ones(
    tiny_model: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    make = text_rows if family == "llama" else mixed_rows
    values = {"model_name_or_path": str(tiny_model(family)), "eval_size": 7, "use_cpu": True}
    run = Run(explicit={**values, "dataset_name": str(make(tmp_path, 17))})
    model: Any = load_speaker(str(tiny_model(family)), use_cpu=True).model
    rows, collator = encoded_rows(run)

    padded = dict(row_losses(model, collator, rows, batch_size=3))
    collator.positions = Positions(model.config)
    packed = dict(row_losses(model, collator, rows, batch_size=3))

    assert packed.keys() == padded.keys()
    for index, row in packed.items():
        assert row.loss_sum == pytest.approx(padded[index].loss_sum, rel=1e-5)
        assert row.num_tokens == padded[index].num_tokens


def test_longest_rows_come_first_and_each_once(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    values = {"model_name_or_path": str(tiny_model("llama")), "eval_size": 7, "use_cpu": True}
    run = Run(explicit={**values, "dataset_name": str(text_rows(tmp_path, 17))})
    rows, collator = encoded_rows(run)
    model = load_speaker(str(tiny_model("llama")), use_cpu=True).model

    order = [index for index, _ in row_losses(model, collator, rows, batch_size=2)]

    lengths = [rows[index]["length"] for index in order]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 3
    assert sorted(order) == list(range(7))


@pytest.mark.parametrize("method", [LORA, QLORA], ids=["lora", "qlora"])
def test_adapter_switched_off_is_the_base_and_on_is_the_merged_model(
    train: Train, tmp_path: Path, method: dict[str, Any]
) -> None:
    run = train("qwen2_vl", **method)
    quantised = "load_in_4bit" in method
    job = prepare(
        Path(run.get("output_dir")), Options(base_precision="dequantized" if quantised else "16bit")
    )
    carry_out(job, tmp_path / "merged")
    tuned = speaker_of(run)
    base = load_speaker(run.get("model_name_or_path"), load_in_4bit=quantised, use_cpu=True)
    merged = load_speaker(str(tmp_path / "merged"), use_cpu=True)
    # What is merged has the adapter's product in float32; on a quantised base it is in bfloat16.
    tolerance = 2**-8 if quantised else 1e-5

    with tuned.model.disable_adapter():
        off = losses(tuned.model, run), prompt_logits(tuned)
    on = losses(tuned.model, run), prompt_logits(tuned)

    assert_alike(off, (losses(base.model, run), prompt_logits(base)), 1e-6)
    if not quantised or dequantises_any_rows():  # this model has rows of 32 and 96
        assert_alike(on, (losses(merged.model, run), prompt_logits(merged)), tolerance)
    assert (on[1] - off[1]).abs().max() > 20 * tolerance * off[1].abs().max()


def prompt_logits(speaker: Speaker) -> torch.Tensor:
    """The logits from which the first token of an answer is taken."""
    asked = [Message(role="user", content=[Part(type="text", text="Which colours are these?")])]
    text = speaker.template.render(asked, add_generation_prompt=True)
    inputs = speaker.processor(text=[text], return_tensors="pt")
    with torch.no_grad():
        logits: torch.Tensor = speaker.model(**inputs).logits[0, -1]
    return logits


def assert_alike(
    found: tuple[list[RowLoss], torch.Tensor],
    expected: tuple[list[RowLoss], torch.Tensor],
    tolerance: float,
) -> None:
    """Compares what two models say, within parts of the largest."""
    for row, other in zip(found[0], expected[0], strict=True):
        assert row.num_tokens == other.num_tokens
        assert row.loss_sum == pytest.approx(other.loss_sum, rel=tolerance)
    scale = expected[1].abs().max().item()
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=tolerance * scale)
