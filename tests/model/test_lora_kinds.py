"""Kinds of LoRA: each trains, and its file gives the same model again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from sailplan.errors import ModelError
from sailplan.model.load import load_model
from sailplan.model.processor import load_processor
from sailplan.model.trainable import lora_config
from sailplan.run.config import Run
from sailplan.train.parts import settle_parts
from tests.support.batches import image_batch, trainer

Folders = Callable[[str], Path]
KINDS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "dora in 4 bits": {"use_dora": True, "load_in_4bit": True},
    "dora in the tower": {"use_dora": True, "lora_vision": True},
    "rslora": {"use_rslora": True},
    "patterns": {
        "lora_rank_pattern": {"q_proj": 2, r"layers\.1\..*v_proj": 16},
        "lora_alpha_pattern": {"v_proj": 64},
    },
    "biases of adapted layers": {"lora_bias": "lora_only"},
    "all biases": {"lora_bias": "all"},
    "whole modules": {"lora_modules_to_save": ["multi_modal_projector", "lm_head"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal", "lora_r": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_lora_kind_trains_and_reloads_as_it_was(
    tiny_model: Folders, tmp_path: Path, kind: str
) -> None:
    explicit = {
        "model_name_or_path": str(tiny_model("llava")),
        "use_peft": True,
        "lora_r": 8,
        "lora_target_modules": ["q_proj", "v_proj"],
        **KINDS[kind],
    }
    run = Run(explicit=explicit)
    model, processor = load_model(run), load_processor(run)
    training = trainer(
        model,
        processor,
        [image_batch(processor, seed=seed) for seed in range(3)],
        tmp_path,
        max_steps=3,
        peft_config=lora_config(run, model),
    )
    settle_parts(run, training.args, training.model)
    before = {
        name: parameter.detach().clone()
        for name, parameter in training.model.named_parameters()
        if parameter.requires_grad
    }

    training.train()
    training.save_model()

    still = [
        name
        for name, parameter in training.model.named_parameters()
        if name in before and parameter.equal(before[name])
    ]
    assert still == []
    again = PeftModel.from_pretrained(load_model(run), tmp_path)
    batch = image_batch(processor)
    with torch.no_grad():
        logits = [m.eval()(**batch).logits for m in (training.model, again)]
        plain = load_model(run).eval()(**batch).logits
    # TRL trains the adapter of a quantised model in bf16, and PEFT loads it in fp32.
    tolerance = {"rtol": 0, "atol": 5e-3 if "load_in_4bit" in explicit else 1e-5}
    torch.testing.assert_close(logits[0], logits[1], **tolerance)
    assert (logits[0] - plain).abs().max() > 1e-3


def test_patterns_give_layers_their_own_rank_and_alpha(tiny_model: Folders, tmp_path: Path) -> None:
    fields = {"lora_r": 8, "lora_target_modules": ["q_proj", "v_proj"], **KINDS["patterns"]}
    run = Run(explicit={"model_name_or_path": str(tiny_model("llama")), "use_peft": True, **fields})
    model = load_model(run)
    model = get_peft_model(model, lora_config(run, model))

    found = {
        name.removeprefix("base_model.model.model.layers."): (
            module.r["default"],
            module.scaling["default"],
        )
        for name, module in model.named_modules()
        if name.endswith("_proj") and hasattr(module, "lora_A")
    }
    assert found == {
        "0.self_attn.q_proj": (2, 32 / 2),
        "0.self_attn.v_proj": (8, 64 / 8),
        "1.self_attn.q_proj": (2, 32 / 2),
        "1.self_attn.v_proj": (16, 64 / 16),
    }
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["rank_pattern"] == fields["lora_rank_pattern"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_rank_pattern": {"query": 4}}, "lora_rank_pattern: 'query' matches no adapted la"),
        (
            {"lora_alpha_pattern": {"q_proj": 4, r"layers.0.self_attn.q_proj": 8}},
            "'layers.0.self_attn.q_proj' matches no adapted layer that an earlier pattern leaves",
        ),
        ({"lora_rank_pattern": {"fc1": 4}}, "matches no adapted layer"),
        (
            {"lora_rank_pattern": {"q_proj": 0}},
            "lora_rank_pattern: 'q_proj' is 0; allowed: a whole number, 1 or more",
        ),
        ({"lora_alpha_pattern": {"q_proj": "many"}}, "'q_proj' is 'many'; allowed: a whole"),
        ({"lora_rank_pattern": {"(q_proj": 4}}, "'\\(q_proj' is no regular expression"),
    ],
)
def test_patterns_in_vain_are_refused(
    tiny_model: Folders, fields: dict[str, Any], message: str
) -> None:
    run = Run(explicit={"model_name_or_path": str(tiny_model("llava")), "use_peft": True, **fields})

    with pytest.raises(ModelError, match=message) as caught:
        lora_config(run, load_model(run))

    assert "\n" not in str(caught.value)
