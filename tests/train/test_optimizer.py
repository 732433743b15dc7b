"""Optimizers of `optim`, and learning rates of parts, on one process."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.training_args import OptimizerNames

from sailplan.errors import ModelError, RunFileError
from sailplan.model.load import load_model
from sailplan.model.parts import parameters_by_part
from sailplan.model.processor import load_processor
from sailplan.model.trainable import lora_config, trained_parts
from sailplan.run.config import Run
from sailplan.train.optimizer import optimizer_by_part
from sailplan.train.optimizer_check import OPTIM_ARGS, check_optimizer
from sailplan.train.parts import settle_parts
from tests.support.batches import image_batch, trainer, training_arguments

Folders = Callable[[str], Path]
RATES = {"vision_tower_learning_rate": 2e-3, "projector_learning_rate": 8e-3}


def make(folder: Path, out: Path, fields: dict[str, Any], **settings: Any) -> Any:
    """Returns a trainer of the tiny LLaVA, its parts settled."""
    run = Run(explicit={"model_name_or_path": str(folder), "learning_rate": 4e-3, **fields})
    model, processor = load_model(run), load_processor(run)
    settings = {"learning_rate": 4e-3, **settings}
    adapters = lora_config(run, model)
    trained = trained_parts(run, model, adapters)
    args = training_arguments(out, **settings)
    training = trainer(
        model,
        processor,
        [image_batch(processor, seed=seed) for seed in range(4)],
        out,
        peft_config=adapters,
        optimizer_cls_and_kwargs=optimizer_by_part(run, args, trained),
        **settings,
    )
    training.notes = settle_parts(run, training.args, training.model)
    return training


def weights(model: Any) -> dict[str, dict[str, Tensor]]:
    return {
        part: {name: p.detach().clone() for name, p in parameters.items()}
        for part, parameters in parameters_by_part(model).items()
    }


def moves(training: Any) -> dict[str, Tensor]:
    """Trains, and returns how each part's tensors moved, as one vector."""
    before = weights(training.model)
    training.train()
    after = weights(training.model)
    return {
        part: torch.cat([(after[part][name] - old).flatten() for name, old in tensors.items()])
        for part, tensors in before.items()
    }


@pytest.mark.parametrize("adapters", [{}, {"use_peft": True, "lora_vision": True}])
def test_rates_of_parts_scale_the_steps_of_their_tensors(
    tiny_model: Folders, tmp_path: Path, adapters: dict[str, Any]
) -> None:
    settings = {"optim": "sgd", "max_steps": 1, "max_grad_norm": 0}
    folder = tiny_model("llava")
    plain = moves(make(folder, tmp_path, adapters, **settings))
    rated = moves(make(folder, tmp_path, {**adapters, **RATES}, **settings))

    for part, factor in (("vision_tower", 0.5), ("projector", 2), ("language_model", 1)):
        assert plain[part].count_nonzero()
        torch.testing.assert_close(rated[part], factor * plain[part], rtol=1e-4, atol=1e-7)


def test_rate_of_zero_leaves_the_part_as_it_was(tiny_model: Folders, tmp_path: Path) -> None:
    fields = {"projector_learning_rate": 0, "vision_tower_learning_rate": 1e-3}
    found = moves(make(tiny_model("llava"), tmp_path, fields, max_steps=2))

    assert not found["projector"].count_nonzero()
    assert found["vision_tower"].count_nonzero()
    assert found["language_model"].count_nonzero()


def test_groups_divide_what_trains_by_part_and_decay_and_follow_the_schedule(
    tiny_model: Folders, tmp_path: Path
) -> None:
    training = make(
        tiny_model("llava"),
        tmp_path,
        RATES,
        max_steps=4,
        weight_decay=0.1,
        lr_scheduler_type="linear",
    )
    training.create_optimizer_and_scheduler(num_training_steps=4)
    groups = training.optimizer.param_groups
    names = {id(p): name for name, p in training.model.named_parameters()}

    expected = [(r, d) for r in (4e-3, 8e-3, 2e-3) for d in (0.1, 0.0)]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == expected
    found = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(found) == sorted(
        n for n, p in training.model.named_parameters() if p.requires_grad
    )
    reference = set(training.get_decay_parameter_names(training.model))
    for group in groups:
        decays = {names[id(p)] in reference for p in group["params"]}
        assert decays == {group["weight_decay"] > 0}
    training.optimizer.step()
    training.lr_scheduler.step()
    assert [g["lr"] for g in groups] == pytest.approx([0.75 * rate for rate, _ in expected])


def test_resume_keeps_the_rates_of_parts(tiny_model: Folders, tmp_path: Path) -> None:
    settings = {"max_steps": 4, "lr_scheduler_type": "linear", "save_strategy": "steps"}
    folder = tiny_model("llava")
    whole = make(folder, tmp_path / "whole", RATES, save_steps=2, **settings)
    whole.train()
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")

    run = {**RATES, "model_name_or_path": checkpoint}
    resumed = make(folder, tmp_path / "resumed", run, save_steps=9, **settings)
    resumed.train(resume_from_checkpoint=checkpoint)

    for group, expected in zip(
        resumed.optimizer.param_groups, whole.optimizer.param_groups, strict=True
    ):
        assert (group["initial_lr"], group["lr"]) == (expected["initial_lr"], expected["lr"])
    old, new = weights(whole.model), weights(resumed.model)
    for part, tensors in old.items():
        for name, tensor in tensors.items():
            assert tensor.equal(new[part][name]), name


def test_notes_name_what_trains_of_each_part_and_how_fast(
    tiny_model: Folders, tmp_path: Path
) -> None:
    fields = {"freeze": ["vision_tower"], "projector_learning_rate": 1e-3}
    notes = make(tiny_model("llava"), tmp_path, fields).notes

    assert notes[0].startswith("trainable params: ")
    pattern = r"(\w+): trainable params: ([\d,]+) \|\| all params: ([\d,]+) \|\| (.*)"
    lines = [re.fullmatch(pattern, line).groups() for line in notes[1:]]
    assert [(part, how) for part, _, _, how in lines] == [
        ("vision_tower", "frozen"),
        ("projector", "learning rate 0.001"),
        ("language_model", "learning rate 0.004"),
    ]
    assert lines[0][1] == "0"
    assert all(trainable == total for _, trainable, total, _ in lines[1:])


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        (
            "llava",
            {"freeze": ["projector"], "projector_learning_rate": 1e-3},
            "projector_learning_rate: no projector trains; drop it, or let that part train: freeze",
        ),
        (
            "llava",
            {"use_peft": True, "vision_tower_learning_rate": 1e-3},
            "vision_tower_learning_rate: no vision_tower trains; drop it, .* lora_vision",
        ),
        ("llama", {"vision_tower_learning_rate": 1e-3}, "rate: no vision_tower trains"),
    ],
)
def test_rates_in_vain_are_refused(
    tiny_model: Folders, tmp_path: Path, family: str, fields: dict[str, Any], message: str
) -> None:
    run = Run(explicit={"model_name_or_path": str(tiny_model(family)), **fields})
    model = load_model(run)
    trained = trained_parts(run, model, lora_config(run, model))

    with pytest.raises(ModelError, match=message):
        optimizer_by_part(run, training_arguments(tmp_path), trained)


@pytest.mark.parametrize(
    ("optim", "config", "message"),
    [
        (
            "adamw_torch",
            {"optimizer": {"type": "AdamW"}},
            "vision_tower_learning_rate with an optimizer in DeepSpeed's configuration, which kno",
        ),
        ("lomo", {}, "vision_tower_learning_rate with optim lomo, which groups the parameters"),
    ],
)
def test_rates_of_parts_without_groups_of_ours_are_refused(
    tmp_path: Path, optim: str, config: dict[str, Any], message: str
) -> None:
    args = training_arguments(tmp_path, optim=optim)
    args.deepspeed_plugin = type("Plugin", (), {"deepspeed_config": config})()

    with pytest.raises(RunFileError, match=message):
        optimizer_by_part(Run(explicit=RATES), args, {"vision_tower", "projector"})


@pytest.mark.parametrize("name", [name.value for name in OptimizerNames])
def test_every_optimizer_trains_two_steps_or_is_refused_in_one_line(
    tiny_model: Folders, tmp_path: Path, name: str
) -> None:
    args, refused = training_arguments(tmp_path, optim=name), ""
    try:
        check_optimizer(args)
    except RunFileError as error:
        refused = str(error)
    if refused:
        assert re.match(rf"optim {name}: .*(install|import|CPU-only)", refused)
        assert "\n" not in refused
        return
    assert name in OPTIM_ARGS
    found = moves(make(tiny_model("llava"), tmp_path, RATES, optim=name, max_steps=2))
    assert all(move.isfinite().all() and move.count_nonzero() for move in found.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim_args": "momentum"}, "optim_args 'momentum'; allowed: name=value,name=value"),
        (
            {"optim_args": "momentum=0.9"},
            "optim adamw_torch_fused has no momentum; allowed: none, adamw_torch_fused takes no",
        ),
        (
            {"optim": "sgd", "optim_args": "momentun=0.9"},
            "optim sgd has no momentun; allowed: momentum, dampening, nesterov",
        ),
        (
            {"optim": "sgd", "optim_args": "momentum=much"},
            "optim sgd with optim_args momentum=much: could not convert string to float: 'much'",
        ),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycle": 2}},
            "lr_scheduler_kwargs: lr_scheduler_type cosine has no num_cycle; allowed: num_cycles",
        ),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"num_cycles": 2}},
            "lr_scheduler_type constant has no num_cycles; allowed: none",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "lr_scheduler_type cosine_with_min_lr: One of min_lr or min_lr_rate should be set",
        ),
        (
            {"lr_scheduler_type": "warmup_stable_decay"},
            "lr_scheduler_type warmup_stable_decay: .* missing .* 'num_decay_steps'",
        ),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1}},
            "lr_scheduler_type polynomial with lr_scheduler_kwargs .*: lr_end .* must be smaller",
        ),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "two"}},
            "lr_scheduler_type cosine with lr_scheduler_kwargs {'num_cycles': 'two'}: ",
        ),
        (
            {
                "lr_scheduler_type": "reduce_lr_on_plateau",
                "lr_scheduler_kwargs": {"patiens": 2},
                "eval_strategy": "steps",
                "eval_steps": 1,
            },
            "lr_scheduler_type reduce_lr_on_plateau with .*unexpected keyword argument 'patiens'",
        ),
    ],
)
def test_wrong_arguments_are_one_line(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunFileError, match=message) as caught:
        check_optimizer(training_arguments(tmp_path, **settings))

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("optim", "zero", "message"),
    [
        ("adagrad", {"stage": 2}, "optim adagrad under DeepSpeed"),
        ("apollo_adamw", {"stage": 3}, "optim apollo_adamw under DeepSpeed, which hands it flat"),
        (
            "sgd",
            {"stage": 3, "offload_optimizer": {"device": "cpu"}},
            "optim sgd with ZeRO-Offload, which would train with its own AdamW instead; allowed: ",
        ),
    ],
)
def test_optimizers_that_deepspeed_breaks_are_refused(
    tmp_path: Path, optim: str, zero: dict[str, Any], message: str
) -> None:
    args = training_arguments(tmp_path, optim=optim)
    plugin = type("Plugin", (), {"deepspeed_config": {"zero_optimization": zero}})()
    args.deepspeed_plugin = plugin

    with pytest.raises(RunFileError, match=message):
        check_optimizer(args)
