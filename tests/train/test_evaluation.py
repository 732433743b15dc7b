"""Evaluation while training: the held-out loss, the best weights, stopping early, answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sailplan.errors import RunFileError
from sailplan.run.config import Run
from sailplan.run.state import read_state
from sailplan.train.arguments import training_arguments
from tests.support.held_out import plain_loss
from tests.support.launch import Entry, flags
from tests.support.rows import chat_rows

Start = Callable[..., Path]


@pytest.fixture
def start(tmp_path: Path, tiny_model: Callable[[str], Path], entry: Entry) -> Start:
    """Trains and returns the run's directory."""

    def call(family: str = "qwen2_vl", **values: Any) -> Path:
        data = chat_rows(tmp_path / "data", 17, images=family != "llama")
        given = {
            "model_name_or_path": tiny_model(family),
            "dataset_name": data,
            "output_dir": tmp_path / "out",
            "eval_size": 7,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 3,
            "max_steps": 2,
            "logging_steps": 1,
            "eval_generations": 0,
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
        } | values
        end = entry(flags({k: v for k, v in given.items() if v is not None}))
        assert end.code == 0, end.err
        return tmp_path / "out"

    return call


def logged(out: Path, name: str) -> list[float]:
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [record[name] for record in records if name in record]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 16])
def test_held_out_loss_is_that_of_a_plain_loop_over_tokens(start: Start, batch_size: int) -> None:
    out = start(per_device_eval_batch_size=batch_size, save_strategy="no")

    expected = plain_loss(out)
    assert logged(out, "eval_loss")[-1] == pytest.approx(expected.loss, rel=1e-5)
    assert logged(out, "eval_perplexity")[-1] == pytest.approx(math.exp(expected.loss), rel=1e-4)
    assert logged(out, "eval_mean_token_accuracy")[-1] == pytest.approx(expected.accuracy)
    # Rows differ in length, so that the mean of rows is another number.
    assert expected.mean_of_rows != pytest.approx(expected.loss, rel=1e-3)


def test_held_out_loss_is_measured_before_the_first_step_where_asked(start: Start) -> None:
    out = start(eval_on_start=True, save_strategy="no")
    assert len(logged(out, "eval_loss")) == 3


class Largest(torch.overrides.TorchFunctionMode):
    """Watches for the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not isinstance(out, torch.nn.Parameter):
            self.elements = max(self.elements, out.numel())
        return out


def test_evaluation_makes_no_larger_tensors_than_training_and_no_logits(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sailplan.data.balance import Work
    from sailplan.data.collator import Collator
    from sailplan.data.conversations import Messages
    from sailplan.data.images import ImageOpener
    from sailplan.model.families import family_of
    from sailplan.train.trainer import Trainer
    from tests.support.batches import training_arguments as arguments

    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    model.resize_token_embeddings(100_000)  # TRL goes through the vocabulary by 32,768
    ids = list(range(5, 105))
    columns = {"input_ids": ids, "labels": ids, "length": len(ids), "image_tokens": 0}
    rows = Dataset.from_list([columns] * 4)
    settings = {"per_device_eval_batch_size": 4, "per_device_train_batch_size": 4}
    trainer = Trainer(
        model=model,
        args=arguments(tmp_path, max_steps=1, **settings),
        train_dataset=rows,
        eval_dataset=rows,
        collator=Collator(
            tokenizer,
            family_of(model.config),
            Messages(image_columns=()),
            ImageOpener(root=None),
        ),
        work=lambda _: Work(),
        processing_class=tokenizer,
    )

    with Largest() as training:
        trainer.train()
    with Largest() as evaluation:
        assert trainer.evaluate()["eval_loss"] > 0

    logits = 4 * 100 * 100_000
    assert 0 < evaluation.elements <= training.elements < logits / 2
    with Largest() as plain:  # what the watch would see
        model(input_ids=torch.tensor([ids] * 4))
    assert plain.elements >= logits


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "mllama"])
def test_best_weights_of_a_full_run_are_loaded_at_the_end(start: Start, family: str) -> None:
    # A rate this high makes every step worse than the first.
    out = start(
        family,
        learning_rate=3.0,
        lr_scheduler_type="constant",
        max_steps=3,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
    )

    losses = logged(out, "eval_loss")
    best = min(range(3), key=lambda step: losses[step]) + 1
    assert best < 3
    kept = {path.name for path in out.glob("checkpoint-*")}
    assert f"checkpoint-{best}" in kept
    saved, wanted = tensors(out), tensors(out / f"checkpoint-{best}")
    assert saved.keys() == wanted.keys()
    assert all(saved[name].equal(wanted[name]) for name in wanted)


def test_best_adapter_is_loaded_at_the_end(start: Start) -> None:
    out = start(
        use_peft=True,
        learning_rate=100.0,
        lr_scheduler_type="constant",
        max_steps=3,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="perplexity",
    )

    losses = logged(out, "eval_loss")
    best = min(range(3), key=lambda step: losses[step]) + 1
    assert best < 3
    saved, wanted = tensors(out), tensors(out / f"checkpoint-{best}")
    assert saved.keys() == wanted.keys()
    assert all(saved[name].equal(wanted[name]) for name in wanted)


def test_run_stops_where_evaluations_get_no_better(start: Start) -> None:
    out = start(
        learning_rate=3.0,
        lr_scheduler_type="constant",
        max_steps=9,
        early_stopping_patience=2,
        save_strategy="no",
    )
    losses = logged(out, "eval_loss")
    best = min(range(len(losses)), key=lambda step: losses[step])
    assert len(losses) == best + 3 < 9
    state = read_state(out / "state.json")
    assert state is not None
    assert state.state == "finished"
    assert state.why.endswith(f": eval_loss did not become better than {losses[best]:.4g}")


def arguments_of(**fields: Any) -> Any:
    return training_arguments(Run(explicit={"use_cpu": True, **fields}))[0]


def test_metric_is_the_loss_where_a_run_stops_early() -> None:
    args = arguments_of(eval_strategy="steps", early_stopping_patience=1)
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)


def test_accuracy_is_better_where_it_is_higher() -> None:
    args = arguments_of(eval_strategy="steps", metric_for_best_model="eval_mean_token_accuracy")
    assert args.greater_is_better


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"eval_strategy": "steps", "metric_for_best_model": "bleu"},
            "metric_for_best_model is 'bleu'; allowed: loss, perplexity, mean_token_accuracy",
        ),
        ({"early_stopping_patience": 2}, "early_stopping_patience without evaluation; set eval_"),
        ({"eval_generations": 2}, "eval_generations without evaluation"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end without evaluation"),
        (
            {
                "eval_strategy": "steps",
                "eval_steps": 10.0,
                "save_strategy": "epoch",
                "load_best_model_at_end": True,
            },
            "requires the save and eval strategy to match",
        ),
    ],
)
def test_evaluation_that_cannot_work_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RunFileError) as caught:
        arguments_of(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
