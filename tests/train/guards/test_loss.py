"""A loss or a gradient that is not finite: its step is left out whole, or the run ends first."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.distributed.fsdp import fully_shard
from transformers import TrainerControl, TrainerState, TrainingArguments

from sailplan.data.batch_rows import BatchRows
from sailplan.errors import TrainingError
from sailplan.train.guards.loss import LossGuard
from tests.support.checkpoints import differing, tensors_of
from tests.support.launch import Entry, entry_script, flags, losses
from tests.support.plant import planted
from tests.support.rows import chat_rows

BAD = (2, 3)
"""The steps in which the second micro batch has a loss of NaN."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_rows(tmp_path_factory.mktemp("data"), 24, images=False)


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    env = planted(what="bad_loss", steps=BAD, micro_batch=1)
    with entry_script(tmp_path_factory.mktemp("cache"), env) as run:
        yield run


def settings(model: Path, data: Path, out: Path, **changes: Any) -> list[str]:
    values = {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": out,
        "max_steps": 5,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 1,
        "save_first_step": False,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
    }
    return flags(values | changes)


def records_of(out: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (out / "metrics.jsonl").read_text().splitlines()))


def rows_in(text: str) -> list[int]:
    return sorted(int(number) for number in re.findall(r"train row (\d+) \(from 0\)", text))


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_skip_leaves_the_step_out_whole_and_goes_on(
    tmp_path: Path,
    tiny_model: Callable[[str], Path],
    data: Path,
    entry: Entry,
    max_grad_norm: float,
) -> None:
    changes = {"on_bad_loss": "skip", "max_grad_norm": max_grad_norm}

    end = entry(settings(tiny_model("llama"), data, tmp_path, **changes))

    assert end.code == 0, end.err
    before, after = tmp_path / "checkpoint-1", tmp_path / "checkpoint-3"
    assert differing(before, after) == []
    assert len(tensors_of(before)) > 20
    assert differing(after, tmp_path / "checkpoint-4")
    records = records_of(tmp_path)
    skipped = [record for record in records if "skipped" in record]
    assert [record["step"] for record in skipped] == list(BAD)
    assert all(record["skipped"] == "the loss is nan" for record in skipped)
    # The rows of one micro batch, which are others in each step.
    rows = [rows_in(str(record["rows"])) for record in skipped]
    assert [len(of_step) for of_step in rows] == [2, 2]
    assert not {*rows[0]} & {*rows[1]}
    assert rows_in(end.out) == sorted(rows[0] + rows[1])
    # What is logged of the steps that were taken is theirs alone.
    logged = [record for record in records if "grad_norm" in record]
    assert [record["step"] for record in logged] == [1, 4, 5]
    assert all(record["loss"] > 1 and "NaN" not in json.dumps(record) for record in logged)
    assert losses(tmp_path) == [record["loss"] for record in logged]


def test_skip_gives_the_mean_of_the_steps_that_were_taken(
    tmp_path: Path, tiny_model: Callable[[str], Path], data: Path, entry: Entry
) -> None:
    model = tiny_model("llama")
    each, mean = tmp_path / "each", tmp_path / "mean"
    changes = {"on_bad_loss": "skip", "save_strategy": "no"}
    assert entry(settings(model, data, each, **changes)).code == 0
    assert entry(settings(model, data, mean, **changes, logging_steps=5)).code == 0

    assert losses(mean) == [pytest.approx(sum(losses(each)) / 3)]
    parts, changes = tmp_path / "parts", changes | {"logging_steps": 5}
    saving = changes | {"save_strategy": "steps"}
    assert entry(settings(model, data, parts, **saving)).code == 0
    again = changes | {"resume_from_checkpoint": parts / "checkpoint-3"}
    assert entry(settings(model, data, tmp_path / "again", **again)).code == 0
    assert losses(tmp_path / "again") == losses(mean)


def test_stop_ends_the_run_before_the_step_and_names_its_rows(
    tmp_path: Path, tiny_model: Callable[[str], Path], data: Path, entry: Entry
) -> None:
    arguments = settings(tiny_model("llama"), data, tmp_path)

    end = entry(arguments)

    assert end.code == 8
    line = end.err.splitlines()[-1]
    assert line.startswith("error: step 2: the loss is nan; its rows: train row ")
    assert "on_bad_loss: skip" in line
    (stopped,) = [record for record in records_of(tmp_path) if "stopped" in record]
    assert rows_in(line) == rows_in(str(stopped["rows"]))
    assert len(stopped["rows"]) == 2
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1"]


def test_run_that_goes_on_after_a_skipped_step_sees_the_rows_of_an_undisturbed_one(
    tmp_path: Path, tiny_model: Callable[[str], Path], data: Path, entry: Entry
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    model = tiny_model("llama")
    end = entry(settings(model, data, whole, on_bad_loss="skip"))
    assert end.code == 0, end.err

    again = settings(
        model, data, parts, on_bad_loss="skip", resume_from_checkpoint=whole / "checkpoint-3"
    )
    end = entry(again)

    assert end.code == 0, end.err
    assert losses(parts) == losses(whole)[-2:]


def test_gradient_that_is_not_finite_is_found_where_the_loss_is(
    tmp_path: Path, tiny_model: Callable[[str], Path], data: Path
) -> None:
    env = planted(
        {"what": "bad_gradient", "steps": [2]}, {"what": "bad_loss", "steps": [*range(4, 40)]}
    )
    with entry_script(tmp_path / "cache", env) as entry:
        arguments = settings(tiny_model("llama"), data, tmp_path / "stop", use_peft=True)
        end = entry(arguments)
        assert end.code == 8
        why = "step 2: the gradient is not finite, though each loss is (model.layers.0."
        assert why in end.err
        assert len(rows_in(end.err.splitlines()[-1])) == 4  # of the whole step

        changes = {"on_bad_loss": "skip", "use_peft": True, "max_steps": 40}
        end = entry(settings(tiny_model("llama"), data, tmp_path / "skip", **changes))
    assert end.code == 8
    assert "error: 10 steps in a row are left out; step 13: the loss is nan; its rows:" in end.err
    assert differing(tmp_path / "skip/checkpoint-1", tmp_path / "skip/checkpoint-2") == []
    assert differing(tmp_path / "skip/checkpoint-2", tmp_path / "skip/checkpoint-3")


class Driven:
    """The guard over a bare layer, stepped as Trainer does it where this machine cannot."""

    def __init__(self, layer: torch.nn.Module, folder: Path, *, scaler: Any = None) -> None:
        self.layer, self.scaler = layer, scaler
        args = TrainingArguments(str(folder), use_cpu=True)
        self.state = TrainerState()
        self.state.stateful_callbacks = {}
        self.events = (args, self.state, TrainerControl())
        Accelerator(cpu=True)
        sgd = torch.optim.SGD(layer.parameters(), lr=1e-3)
        self.optimizer = AcceleratedOptimizer(sgd, scaler=scaler)
        trainer: Any = SimpleNamespace(
            args=args,
            state=self.state,
            is_deepspeed_enabled=False,
            rows=[BatchRows(places=("train row 7 (from 0)",))],
            callback_handler=SimpleNamespace(callbacks=[]),
            _tr_loss=torch.zeros(()),
            _metrics={"train": {}},
            _globalstep_last_logged=0,
        )
        self.guard = LossGuard(trainer, folder / "metrics.jsonl", skips=False)
        self.guard.on_train_begin(*self.events, optimizer=self.optimizer)

    def step(self, *, loss: float = 1.0, gradient: float = 1.0) -> None:
        self.guard.on_step_begin(*self.events)
        found = self.layer(torch.ones(1, 4)).sum() * loss
        found.register_hook(lambda coming: coming * gradient)
        seen = self.guard.see(found * 1.0)
        (seen if self.scaler is None else self.scaler.scale(seen)).backward()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer.optimizer)
        self.guard.judge(torch.nn.utils.clip_grad_norm_(self.layer.parameters(), 1.0))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.guard.on_step_end(*self.events)


def test_overflow_of_a_loss_scaler_is_its_own_and_a_loss_of_nan_is_not(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu")
    driven = Driven(torch.nn.Linear(4, 4), tmp_path, scaler=scaler)

    driven.step(gradient=float("inf"))
    assert driven.optimizer.step_was_skipped
    assert scaler.get_scale() == 2.0**15
    driven.step()
    assert not driven.optimizer.step_was_skipped

    with pytest.raises(TrainingError, match=r"step 1: the loss is nan; its rows: train row 7 "):
        driven.step(loss=float("nan"))


@pytest.fixture
def process_group() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_guard_reads_the_norm_of_fsdp2_shards(tmp_path: Path, process_group: None) -> None:
    layer = torch.nn.Linear(4, 4)
    fully_shard(layer, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    driven = Driven(layer, tmp_path)
    driven.step()
    before = layer.weight.full_tensor().clone()

    with pytest.raises(TrainingError, match=r"step 1: the gradient is not finite, though each "):
        driven.step(gradient=float("nan"))

    assert torch.equal(layer.weight.full_tensor(), before)
