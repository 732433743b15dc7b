"""The tiny models that other tests stand on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from tests.support.tiny import FAMILIES, VISION_FAMILIES, build_tiny, chat_template


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_tiny_vision_model_answers_image_and_text_with_finite_loss(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    processor = transformers.AutoProcessor.from_pretrained(tiny_model(family))
    model = transformers.AutoModelForImageTextToText.from_pretrained(tiny_model(family))
    inputs = processor(
        images=[Image.new("RGB", (70, 56), "red")],
        text=[f"{processor.image_token}Describe the product."],
        return_tensors="pt",
    )
    labels = inputs["input_ids"].clone()
    labels[labels >= model.config.get_text_config().vocab_size] = -100

    loss = model(**inputs, labels=labels).loss

    assert torch.isfinite(loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_model_built_twice_has_equal_weights_and_tokens(
    tiny_model: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    again = build_tiny(family, tmp_path)

    for name in ("model.safetensors", "tokenizer.json"):
        assert (again / name).read_bytes() == (tiny_model(family) / name).read_bytes()


def test_tiny_model_keeps_published_chat_template(tiny_model: Callable[[str], Path]) -> None:
    processor = transformers.AutoProcessor.from_pretrained(tiny_model("qwen2_vl"))

    assert processor.chat_template == chat_template("qwen2_vl")
