"""The guard against tensors that should train and never get a gradient, on one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sailplan.errors import TrainingError
from sailplan.model.load import load_model
from sailplan.model.processor import load_processor
from sailplan.model.trainable import freeze_unused, lora_config
from sailplan.run.config import Run
from sailplan.train.guards.gradients import GradientGuard
from tests.support.batches import IGNORED, image_batch, text_batch, trainer

Folders = Callable[[str], Path]
DEAD = "model.vision_tower.encoder.layers.2.self_attn.k_proj.weight"
"""First of the 18 tensors of LLaVA's vision tower that no loss depends on."""


class CountHooks(TrainerCallback):
    """Counts the gradient hooks that are left after each step."""

    def __init__(self) -> None:
        self.after_step: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.after_step.append(sum(bool(p._backward_hooks) for p in model.parameters()))


def load(folder: Path, **fields: Any) -> tuple[Any, Any, Run]:
    run = Run(explicit={"model_name_or_path": str(folder), **fields})
    return load_model(run), load_processor(run), run


def test_guard_lora_run_passes_and_leaves_no_hook(tiny_model: Folders, tmp_path: Path) -> None:
    # A has no gradient in the first step, while B is zero, and gets one in the second.
    model, processor, run = load(tiny_model("llava"), use_peft=True)
    counter = CountHooks()
    batches = [image_batch(processor, seed=seed) for seed in range(3)]

    trainer(
        model,
        processor,
        batches,
        tmp_path,
        max_steps=3,
        callbacks=[GradientGuard(2), counter],
        peft_config=lora_config(run, model),
    ).train()

    assert counter.after_step == [2 * 14, 0, 0]


def test_guard_full_run_with_unused_layers_frozen_passes(
    tiny_model: Folders, tmp_path: Path
) -> None:
    model, processor, _ = load(tiny_model("llava"))
    freeze_unused(model)
    counter = CountHooks()

    trainer(
        model,
        processor,
        [image_batch(processor)],
        tmp_path,
        max_steps=1,
        callbacks=[GradientGuard(1), counter],
    ).train()

    assert counter.after_step == [0]


def test_guard_tensors_without_gradient_stop_the_run_by_name(
    tiny_model: Folders, tmp_path: Path
) -> None:
    model, processor, _ = load(tiny_model("llava"))
    batches = [image_batch(processor, seed=seed) for seed in range(4)]
    training = trainer(
        model, processor, batches, tmp_path, max_steps=4, callbacks=[GradientGuard(3)]
    )

    with pytest.raises(TrainingError, match=r"no gradient in 3 optimizer steps") as caught:
        training.train()

    assert f"steps: {DEAD}, " in str(caught.value)
    assert "and 14 more; freeze them" in str(caught.value)
    assert training.state.global_step == 2  # The third step was the last.


def test_guard_steps_that_teach_nothing_do_not_count(tiny_model: Folders, tmp_path: Path) -> None:
    # Each of these would stop the run if its steps counted: a rate of zero, no image at all, and
    # a dummy image behind the last trained token.
    model, processor, _ = load(tiny_model("llava"))
    words = [text_batch(processor, seed=seed) for seed in range(3)]
    dummy = image_batch(processor)
    dummy["labels"] = dummy["input_ids"].flip(-1).clone()
    dummy["input_ids"] = dummy["input_ids"].flip(-1)
    dummy["labels"][:, 5:] = IGNORED

    for batches, rate in ((3 * [image_batch(processor)], 0.0), (words, 1e-3), (3 * [dummy], 1e-3)):
        training = trainer(
            model,
            processor,
            batches,
            tmp_path,
            max_steps=3,
            learning_rate=rate,
            callbacks=[GradientGuard(2)],
        )
        training.train()
        assert training.state.global_step == 3


def test_guard_words_alone_still_judge_the_language_model(
    tiny_model: Folders, tmp_path: Path
) -> None:
    model, processor, _ = load(tiny_model("llava"))
    model.model.language_model.layers[1].register_parameter(
        "forgotten", torch.nn.Parameter(torch.ones(3))
    )
    batches = [text_batch(processor, seed=seed) for seed in range(3)]
    training = trainer(
        model, processor, batches, tmp_path, max_steps=3, callbacks=[GradientGuard(2)]
    )

    with pytest.raises(TrainingError, match=r"steps: model.language_model.layers.1.forgotten;"):
        training.train()


def test_guard_gradient_not_finite_stops_the_run_at_once(
    tiny_model: Folders, tmp_path: Path
) -> None:
    model, processor, _ = load(tiny_model("llama"))
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    training = trainer(
        model,
        processor,
        [text_batch(processor)],
        tmp_path,
        max_steps=1,
        callbacks=[GradientGuard(20)],
    )

    with pytest.raises(TrainingError, match=r"not finite at step 1: model.embed_tokens.weight, "):
        training.train()


class Driven:
    """The guard over a bare model, stepped as Trainer does it."""

    def __init__(self, model: torch.nn.Module, folder: Path, *, scaler: Any = None) -> None:
        self.guard = GradientGuard(1)
        args = TrainingArguments(str(folder), use_cpu=True)
        self.events = (args, TrainerState(), TrainerControl())
        Accelerator(cpu=True)
        sgd = torch.optim.SGD(model.parameters(), lr=1e-3)
        self.optimizer = AcceleratedOptimizer(sgd, scaler=scaler)
        self.guard.on_train_begin(*self.events, model=model)

    def step(self, loss: torch.Tensor) -> None:
        self.guard.on_step_begin(*self.events, optimizer=self.optimizer)
        loss.backward()
        self.optimizer.step()
        self.guard.on_optimizer_step(*self.events, optimizer=self.optimizer)
        self.optimizer.zero_grad()


def test_guard_step_skipped_by_loss_scaling_does_not_count(
    tiny_model: Folders, tmp_path: Path
) -> None:
    model, processor, _ = load(tiny_model("llama"))
    model.model.register_parameter("forgotten", torch.nn.Parameter(torch.ones(3)))
    scaler = torch.amp.GradScaler("cpu")
    driven = Driven(model, tmp_path, scaler=scaler)

    driven.step(scaler.scale(model(**text_batch(processor)).loss) * float("inf"))
    assert driven.optimizer.step_was_skipped

    with pytest.raises(TrainingError, match=r"1 optimizer steps: model.forgotten; freeze"):
        driven.step(scaler.scale(model(**text_batch(processor)).loss))


@pytest.fixture
def process_group() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_guard_sees_the_gradients_of_fsdp2_shards(
    tiny_model: Folders, tmp_path: Path, process_group: None
) -> None:
    model, processor, _ = load(tiny_model("llama"))
    model.model.register_parameter("forgotten", torch.nn.Parameter(torch.ones(3)))
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    driven = Driven(model, tmp_path)

    with pytest.raises(TrainingError, match=r"1 optimizer steps: model.forgotten; freeze"):
        driven.step(model(**text_batch(processor)).loss)
