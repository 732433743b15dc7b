"""Quantised exports load as they are and say nearly what the model says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from sailplan.errors import ModelError, OutputError
from sailplan.export.quantised import export_quantised
from tests.support.batches import image_batch


@pytest.mark.parametrize("kind", ["bnb-4bit", "bnb-8bit"])
def test_vision_model_loads_and_answers(
    tmp_path: Path, tiny_model: Callable[[str], Path], kind: str
) -> None:
    source = tiny_model("qwen2_vl")

    export_quantised(source, tmp_path / "out", kind)  # type: ignore[arg-type]

    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    for module in found.modules():  # bitsandbytes 0.50's own kernel needs rows of whole blocks
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"][f"load_in_{kind[4]}bit"]
    kinds = {type(module).__name__ for module in found.modules()}
    assert ("Linear4bit" if kind == "bnb-4bit" else "Linear8bitLt") in kinds
    assert type(found.lm_head).__name__ == "Linear"
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.chat_template == AutoProcessor.from_pretrained(source).chat_template
    batch = image_batch(processor, placeholder="<|vision_start|><|image_pad|><|vision_end|>")
    batch.pop("labels")
    base = AutoModelForImageTextToText.from_pretrained(source)
    with torch.no_grad():
        near = torch.cosine_similarity(found(**batch).logits, base(**batch).logits, dim=-1)
    assert near.min() > (0.9 if kind == "bnb-4bit" else 0.99)
    generated = found.generate(**batch, max_new_tokens=2, do_sample=False)
    assert generated.shape[1] > batch["input_ids"].shape[1]


def test_language_model_loads(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    export_quantised(tiny_model("llama"), tmp_path / "out", "bnb-4bit", dtype="bfloat16")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert found.lm_head.weight.dtype == torch.bfloat16
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"} <= names
    assert not list(tmp_path.glob(".out*"))


def test_folder_that_is_not_empty_is_refused(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty; choose another folder"):
        export_quantised(tiny_model("llama"), tmp_path, "bnb-4bit")
    with pytest.raises(ModelError, match="there is no model folder"):
        export_quantised(tmp_path / "none", tmp_path / "out", "bnb-4bit")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
