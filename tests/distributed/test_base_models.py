"""Added tokens under ZeRO-3 on two ranks: embeddings grow while they are sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.base_models import base_model
from tests.support.launch import accelerate_launch, flags
from tests.support.rows import chat_rows

pytestmark = pytest.mark.slow


def launch(tmp_path: Path, **fields: Any) -> Path:
    values = {
        "model_name_or_path": base_model(tmp_path / "base"),
        "dataset_name": chat_rows(tmp_path / "data", 8, images=False),
        "output_dir": tmp_path / "out",
        "max_steps": 2,
        "report_to": "none",
        "save_strategy": "no",
        "bf16": False,
        "chat_template_path": "chatml",
        "added_tokens": ["<a>"],
        "per_device_train_batch_size": 1,
    }
    done = accelerate_launch(flags(values | fields), preset="deepspeed_zero3", processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    return tmp_path / "out"


def test_added_tokens_in_a_full_run_leave_one_whole_model(tmp_path: Path) -> None:
    out = launch(tmp_path)

    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    rows = before.config.vocab_size
    assert model.config.vocab_size == len(tokenizer) == rows + 3
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert load_file(out / "model.safetensors")[name].shape == (rows + 3, 32)
    old = before.get_input_embeddings().weight
    assert (model.get_input_embeddings().weight[:rows] - old).abs().max() < 0.01


def test_added_tokens_beside_an_adapter_train_with_embeddings_kept_whole(tmp_path: Path) -> None:
    out = launch(tmp_path, use_peft=True, lora_modules_to_save=["embed_tokens", "lm_head"])

    saved = load_file(out / "adapter_model.safetensors")
    rows = len(AutoTokenizer.from_pretrained(out))
    prefix = "base_model.model."
    names = [name for name, tensor in saved.items() if tensor.shape == (rows, 32)]
    assert any(name.startswith(f"{prefix}model.embed_tokens") for name in names)
    assert any(name.startswith(f"{prefix}lm_head") for name in names)
