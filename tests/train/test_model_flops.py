"""Operations of a model by hand: what trains, what is frozen, and what lies before what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    MixtralConfig,
)

from sailplan.train.model_flops import ModelFlops, model_flops
from sailplan.train.throughput import rates

HIDDEN, LAYERS, WIDE, VOCABULARY, HEADS, SMALL = 8, 3, 20, 50, 2, 4


def llama(**settings: Any) -> Any:
    config = LlamaConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        intermediate_size=WIDE,
        vocab_size=VOCABULARY,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        **settings,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


ATTENTION = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * (HIDDEN // HEADS)  # q and o; k and v
LAYER = ATTENTION + 3 * HIDDEN * WIDE + 2 * HIDDEN  # norms
DECODER = LAYERS * LAYER + HIDDEN


@pytest.mark.parametrize("tied", [False, True])
def test_all_weights_take_six_operations_a_token_and_the_table_is_only_a_head(tied: bool) -> None:
    assert model_flops(llama(tie_word_embeddings=tied)) == ModelFlops(
        token=6 * DECODER,
        trained=6 * VOCABULARY * HIDDEN,
        square=6 * LAYERS * HIDDEN,
        image_token=0,
        pixel=0,
    )


def test_frozen_weights_below_adapters_take_four() -> None:
    model = get_peft_model(llama(), LoraConfig(r=SMALL, target_modules=["q_proj"]))
    adapters = LAYERS * 2 * SMALL * HIDDEN
    found = model_flops(model)
    assert found.token == 4 * DECODER + 6 * adapters
    assert found.trained == 4 * VOCABULARY * HIDDEN


def test_copies_that_train_in_place_of_frozen_ones_count_once() -> None:
    settings = LoraConfig(r=SMALL, target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert model_flops(get_peft_model(llama(), settings)).trained == 6 * VOCABULARY * HIDDEN


def test_a_token_goes_through_its_own_experts_alone() -> None:
    config = MixtralConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        intermediate_size=WIDE,
        vocab_size=VOCABULARY,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=1,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    used = LAYERS * (LAYER + 4 * HIDDEN) + HIDDEN  # with the router
    assert model_flops(model).token == 6 * used


def test_parts_of_a_vision_language_model_count_by_what_trains_before_them(
    tiny_model: Callable[[str], Path],
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_model("qwen2_vl"), dtype=torch.float32)
    tower, merger = model.model.visual, model.model.visual.merger
    in_merger = sum(weight.numel() for weight in merger.parameters())
    in_tower = sum(weight.numel() for weight in tower.parameters()) - in_merger
    patch = 3 * 2 * 14 * 14

    assert model.config.vision_config.patch_size == 14
    whole = model_flops(model)
    assert (whole.pixel, whole.image_token) == (6 * in_tower / patch, 6 * in_merger)

    tower.requires_grad_(False)
    frozen = model_flops(model)
    assert (frozen.pixel, frozen.image_token) == (2 * in_tower / patch, 2 * in_merger)
    assert frozen.token == whole.token

    merger.requires_grad_(True)
    model.model.language_model.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    projector = model_flops(model)
    assert (projector.pixel, projector.image_token) == (2 * in_tower / patch, 6 * in_merger)
    assert (projector.token, projector.trained) == (whole.token * 4 / 6, whole.trained * 4 / 6)


def test_operations_of_batches_and_their_share_of_the_peak() -> None:
    flops = ModelFlops(token=10.0, trained=100.0, square=0.5, image_token=7.0, pixel=0.25)
    counts = {"tokens": 30.0, "trained": 4.0, "squares": 500.0, "image_tokens": 2.0}
    needed = 300 + 400 + 250 + 14 + 10
    assert flops.of({**counts, "pixels": 40.0}) == needed
    more = {"samples": 3.0, "images": 0.0, "padding": 10.0}
    found = rates(
        {**counts, **more}, seconds=2.0, waited_s=0.5, images=False, mfu=needed / (2.0 * 1948)
    )
    assert found == {
        "tokens_per_s": 15.0,
        "trained_tokens_per_s": 2.0,
        "samples_per_s": 1.5,
        "padding_share": 0.25,
        "data_wait_share": 0.25,
        "mfu": 0.25,
    }
