"""What travels with the weights: a merged folder loads as it is, and its config tells the truth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)

from sailplan.merge.job import Job, Options, prepare
from sailplan.merge.output import carry_out


def tuned(base: Path, folder: Path, auto: Any, **settings: Any) -> Path:
    """An adapter on a base, none of whose values is where it began."""
    model = get_peft_model(auto.from_pretrained(base), LoraConfig(r=3, **settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder)
    return folder


def merge(path: Path, output: Path, **options: Any) -> Job:
    job = prepare(path, Options(**options))
    carry_out(job, output)
    return job


@pytest.fixture
def base(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Path:
    folder = Path(shutil.copytree(tiny_model("qwen2_vl"), tmp_path / "base"))
    GenerationConfig(max_new_tokens=7, do_sample=True, top_k=3).save_pretrained(folder)
    return folder


def test_everything_that_is_loaded_beside_the_weights_travels_along(
    tmp_path: Path, base: Path
) -> None:
    adapter = tuned(base, tmp_path / "run", AutoModelForImageTextToText, target_modules=["q_proj"])

    merge(adapter, tmp_path / "out", dtype="bfloat16")

    there = {path.name for path in (tmp_path / "out").iterdir()}
    beside = {path.name for path in base.iterdir() if path.name != "model.safetensors"}
    assert beside <= there
    assert there == beside | {"model.safetensors"}
    found, own = (AutoProcessor.from_pretrained(folder) for folder in (tmp_path / "out", base))
    assert found.chat_template == own.chat_template
    assert found.tokenizer.get_vocab() == own.tokenizer.get_vocab()
    assert found.image_processor.to_dict() == own.image_processor.to_dict()
    assert GenerationConfig.from_pretrained(tmp_path / "out").max_new_tokens == 7
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_tokenizer_of_the_run_goes_before_the_bases(tmp_path: Path, base: Path) -> None:
    adapter = tuned(base, tmp_path / "run", AutoModelForImageTextToText, target_modules=["q_proj"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{{ 'as it was trained' }}"
    tokenizer.save_pretrained(adapter)

    merge(adapter, tmp_path / "out")

    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_config_tells_that_weights_are_no_longer_tied(
    tmp_path: Path, tiny_model: Callable[[str], Path], target: str
) -> None:
    """From a tied base to what from_pretrained loads: two weights, and what was trained."""
    base = Path(shutil.copytree(tiny_model("llama"), tmp_path / "base"))
    config = AutoModelForCausalLM.from_pretrained(base).config
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    adapter = tuned(base, tmp_path / "run", AutoModelForCausalLM, target_modules=[target])

    job = merge(adapter, tmp_path / "out")

    assert "lm_head.weight is no longer tied: the adapter changed one of two" in job.notes
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["tie_word_embeddings"] is False
    ids = torch.arange(10, 30).view(1, -1)
    trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(
            merged(input_ids=ids).logits, trained(input_ids=ids).logits, atol=1e-4, rtol=1e-4
        )


def test_tied_weights_that_stay_tied_are_written_once(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    base = Path(shutil.copytree(tiny_model("llama"), tmp_path / "base"))
    config = AutoModelForCausalLM.from_pretrained(base).config
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    adapter = tuned(base, tmp_path / "run", AutoModelForCausalLM, target_modules=["q_proj"])

    merge(adapter, tmp_path / "out")

    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.tie_word_embeddings
