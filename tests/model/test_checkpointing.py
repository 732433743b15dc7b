"""Reentrant checkpointing in towers whose embedding transformers does not find."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from sailplan.model.checkpointing import open_vision_to_gradients

IMAGE, SIDE = 7, 4


def qwen3_vl() -> Any:
    """A tiny model with adapters in every block of its tower."""
    text = {
        "vocab_size": 16,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 3, 3],
        },
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 4,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE)
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config)
    adapter = LoraConfig(target_modules=r".*visual\.blocks\..*qkv", init_lora_weights=False)
    return get_peft_model(model, adapter)


def gradients(model: Any) -> dict[str, Any]:
    """Returns the gradients of the tower's adapters after one backward pass."""
    patches = torch.randn(SIDE * SIDE, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[1, *[IMAGE] * (SIDE * SIDE // 4), 2, 3]])
    output = model(
        input_ids=ids,
        mm_token_type_ids=(ids == IMAGE).int(),
        pixel_values=patches,
        image_grid_thw=torch.tensor([[1, SIDE, SIDE]]),
        labels=ids,
    )
    output.loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("opened", [False, True])
def test_reentrant_checkpointing_reaches_a_tower_whose_embedding_nobody_finds(
    opened: bool,
) -> None:
    expected = gradients(qwen3_vl().train())
    model = qwen3_vl().train()
    model.enable_input_require_grads()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": True})
    if opened:
        open_vision_to_gradients(model)

    found = gradients(model)

    if not opened:  # What transformers and PEFT leave: remove this module when it fails.
        assert all(gradient is None for gradient in found.values())
        return
    assert len(found) == 4
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])
        assert gradient.count_nonzero(), name
