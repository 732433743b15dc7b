"""The count of trainable parameters, and the freezing of those that never train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from sailplan.model.load import load_model
from sailplan.model.trainable import describe, freeze_unused, lora_config
from sailplan.run.config import Run

ARTICLE = Run(
    explicit={
        "use_peft": True,
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_target_modules": ["q_proj", "v_proj"],
    }
)


def test_describe_llama_13b_with_lora_prints_the_published_numbers() -> None:
    # Alpaca-LoRA on LLaMA-13B: r 8 on the query and value projections.
    shape = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=32000, num_attention_heads=40, **shape))
        adapted = get_peft_model(model, lora_config(ARTICLE, model))

    expected = "trainable params: 6,553,600 || all params: 13,022,417,920 || trainable%: 0.0503"
    assert describe(adapted) == expected


def test_lora_config_without_peft_is_none_and_with_it_carries_the_settings() -> None:
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, num_attention_heads=1,
                                         intermediate_size=8, num_hidden_layers=1))  # fmt: skip
    fields = {"lora_bias": "lora_only", "use_rslora": True, "use_dora": True}

    config = lora_config(Run(explicit={**ARTICLE.explicit, **fields}), model)

    assert lora_config(Run(explicit={}), model) is None
    assert config is not None
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 16, 0.05)
    assert (config.bias, config.use_rslora, config.use_dora) == ("lora_only", True, True)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_describe_quantised_model_counts_the_weights_it_stands_for(
    tiny_model: Callable[[str], Path], bits: str
) -> None:
    name = {"model_name_or_path": str(tiny_model("llama"))}
    full = load_model(Run(explicit=name))
    packed = load_model(Run(explicit={**name, "use_peft": True, bits: True}))

    total = sum(parameter.numel() for parameter in full.parameters())
    assert f"all params: {total:,} " in describe(packed)
    assert describe(full) == (
        f"trainable params: {total:,} || all params: {total:,} || trainable%: 100.0000"
    )


def test_freeze_unused_llava_freezes_the_last_clip_layer_and_names_it(
    tiny_model: Callable[[str], Path],
) -> None:
    model = load_model(Run(explicit={"model_name_or_path": str(tiny_model("llava"))}))

    names = freeze_unused(model)

    roots = {".".join(name.split(".")[2:5]) for name in names}
    assert roots == {"encoder.layers.2", "post_layernorm.weight", "post_layernorm.bias"}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == set(names)
    assert freeze_unused(model) == ()


def test_freeze_unused_under_lora_freezes_biases_that_cannot_train(
    tiny_model: Callable[[str], Path],
) -> None:
    model = load_model(Run(explicit={"model_name_or_path": str(tiny_model("llava"))}))
    config = lora_config(Run(explicit={**ARTICLE.explicit, "lora_bias": "all"}), model)

    names = freeze_unused(get_peft_model(model, config))

    assert names
    assert all("vision_tower" in name and name.endswith("bias") for name in names)
