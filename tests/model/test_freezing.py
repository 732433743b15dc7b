"""Frozen parts: which there are, what LoRA leaves alone, and what they no longer cost."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import get_peft_model
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from sailplan.errors import ModelError
from sailplan.model.freezing import freeze, frozen_parts
from sailplan.model.load import load_model
from sailplan.model.parts import find_parts, parameters_by_part
from sailplan.model.processor import load_processor
from sailplan.model.trainable import lora_config, trained_parts
from sailplan.run.config import Run
from tests.support.batches import image_batch

Folders = Callable[[str], Path]
PLACEHOLDERS = {"qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>", "llava": "<image>"}


def load(folder: Path, **fields: Any) -> tuple[Run, Any]:
    run = Run(explicit={"model_name_or_path": str(folder), **fields})
    return run, load_model(run)


def trainable_parts(model: Any) -> set[str]:
    parts = parameters_by_part(model)
    return {part for part, of_it in parts.items() if any(p.requires_grad for p in of_it.values())}


@pytest.mark.parametrize(
    ("family", "tower", "projector"),
    [
        ("qwen2_vl", "model.visual.blocks.0.", "model.visual.merger.mlp.0.weight"),
        ("llava", "model.vision_tower.encoder.", "model.multi_modal_projector.linear_1.weight"),
        ("pixtral", "model.vision_tower.patch_conv", "model.multi_modal_projector.linear_1.bias"),
        ("mllama", "model.vision_model.global_", "model.multi_modal_projector.weight"),
    ],
)
def test_parts_divide_every_family(
    tiny_model: Folders, family: str, tower: str, projector: str
) -> None:
    _, model = load(tiny_model(family))

    parts = parameters_by_part(model)

    assert any(name.startswith(tower) for name in parts["vision_tower"])
    assert projector in parts["projector"]
    assert all("language_model" in name or "lm_head" in name for name in parts["language_model"])
    assert sum(map(len, parts.values())) == len(list(model.named_parameters()))


@pytest.mark.parametrize("family", PLACEHOLDERS)
def test_freeze_leaves_the_other_parts_training(tiny_model: Folders, family: str) -> None:
    for frozen in (["vision_tower"], ["vision_tower", "language_model"], ["projector"]):
        run, model = load(tiny_model(family), freeze=frozen)
        freeze(run, model)
        assert trainable_parts(model) == {"vision_tower", "projector", "language_model"} - {*frozen}


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("llama", {"freeze": ["projector"]}, "model has no projector; allowed: language_model"),
        ("llama", {"freeze": ["language_model"]}, "freeze names all that the model has: language"),
        (
            "llava",
            {"freeze": ["vision_tower", "projector", "language_model"]},
            "freeze names all that the model has: vision_tower, projector, language_model; leave",
        ),
    ],
)
def test_freeze_in_vain_is_refused(
    tiny_model: Folders, family: str, fields: dict[str, Any], message: str
) -> None:
    run, model = load(tiny_model(family), **fields)

    with pytest.raises(ModelError, match=message):
        frozen_parts(run, model)


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
@pytest.mark.parametrize("method", ["projector and language model", "language model", "lora"])
@pytest.mark.parametrize("family", PLACEHOLDERS)
def test_frozen_tower_saves_no_activation_and_runs_once(
    tiny_model: Folders, family: str, method: str, checkpointing: dict[str, bool] | None
) -> None:
    fields: dict[str, dict[str, Any]] = {
        "projector and language model": {"freeze": ["vision_tower"]},
        "language model": {"freeze": ["vision_tower", "projector"]},
        "lora": {"use_peft": True},
    }
    run, model = load(tiny_model(family), **fields[method])
    processor = load_processor(run)
    if run.get("use_peft"):
        model = get_peft_model(model, lora_config(run, model))
    freeze(run, model)
    base = model.get_base_model() if run.get("use_peft") else model
    if checkpointing is not None:
        base.activation_checkpointing_enable(checkpointing)
    model.train()
    model.enable_input_require_grads()
    parts = find_parts(base)
    watched = [
        module
        for name, module in base.named_modules()
        if re.search(r"(blocks|layers)\.\d+$", name) and parts.part_of(name) == "vision_tower"
    ]
    inside, saved, calls = [0], [0], [0]

    def enter(*_: Any) -> None:
        inside[0] += 1
        calls[0] += 1

    def leave(*_: Any) -> None:
        inside[0] -= 1

    def pack(tensor: Tensor) -> Tensor:
        saved[0] += inside[0]
        return tensor

    for module in watched:
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**image_batch(processor, placeholder=PLACEHOLDERS[family])).loss.backward()

    assert len(watched) >= 2
    assert calls == [len(watched)]
    assert saved == [0]
    parameters = parameters_by_part(model)
    assert all(p.grad is None for p in parameters["vision_tower"].values())
    assert any(p.grad is not None for p in parameters["language_model"].values())
    if method == "projector and language model":
        assert all(p.grad is not None for p in parameters["projector"].values())


def test_tower_with_adapters_keeps_its_autograd(tiny_model: Folders) -> None:
    run, model = load(tiny_model("llava"), use_peft=True, lora_vision=True)
    processor = load_processor(run)
    model = get_peft_model(model, lora_config(run, model))
    freeze(run, model)

    model(**image_batch(processor)).loss.backward()

    adapters = [
        (name, p) for name, p in model.named_parameters() if "vision_tower" in name and "_B" in name
    ]
    assert adapters
    assert all(p.grad.count_nonzero() for _, p in adapters)


def test_adapters_of_half_a_projector_get_gradients_through_the_rest(tiny_model: Folders) -> None:
    target = r".*multi_modal_projector\.linear_1"
    run, model = load(tiny_model("llava"), use_peft=True, lora_target_modules=[target])
    processor = load_processor(run)
    model = get_peft_model(model, lora_config(run, model))
    freeze(run, model)

    model(**image_batch(processor)).loss.backward()

    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 2
    assert trained[1].grad.count_nonzero()


def test_freeze_bounds_where_adapters_go(tiny_model: Folders) -> None:
    for frozen, left in (
        (["vision_tower"], {"projector", "language_model"}),
        (["language_model"], {"vision_tower", "projector"}),
        (["projector", "language_model"], {"vision_tower"}),
    ):
        fields = {"use_peft": True, "lora_vision": True, "lora_bias": "all", "freeze": frozen}
        run, model = load(tiny_model("qwen2_vl"), **fields)
        adapters = lora_config(run, model)
        assert trained_parts(run, model, adapters) == left
        model = get_peft_model(model, adapters)
        freeze(run, model)
        assert trainable_parts(model) == left


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({}, {"language_model"}),
        ({"lora_vision": True}, {"vision_tower", "projector", "language_model"}),
        ({"lora_modules_to_save": ["multi_modal_projector"]}, {"projector", "language_model"}),
        ({"lora_target_modules": [r".*vision_tower.*\.q_proj"]}, {"vision_tower"}),
        ({"lora_bias": "lora_only"}, {"language_model"}),
    ],
)
def test_trained_parts_are_told_before_peft_wraps_the_model(
    tiny_model: Folders, fields: dict[str, Any], left: set[str]
) -> None:
    run, model = load(tiny_model("llava"), use_peft=True, **fields)
    adapters = lora_config(run, model)

    assert trained_parts(run, model, adapters) == left
    model = get_peft_model(model, adapters)
    freeze(run, model)
    assert trainable_parts(model) == left


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"freeze": ["language_model"]},
            "LoRA finds no layer to adapt: freeze names language_model; write lora_vision: true",
        ),
        (
            {"freeze": ["language_model"], "lora_vision": True, "lora_target_modules": ["o_proj"]},
            "'o_proj' matches layers of language_model, which freeze names; drop one of the two",
        ),
        (
            {
                "freeze": ["language_model"],
                "lora_vision": True,
                "lora_modules_to_save": ["lm_head"],
            },
            "lora_modules_to_save: 'lm_head' lies in language_model, which freeze names",
        ),
    ],
)
def test_freeze_against_lora_is_refused(
    tiny_model: Folders, fields: dict[str, Any], message: str
) -> None:
    run, model = load(tiny_model("llava"), use_peft=True, **fields)

    with pytest.raises(ModelError, match=message):
        lora_config(run, model)
