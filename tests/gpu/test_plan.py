"""The planned peak beside what a run on this GPU measures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

METHODS: dict[str, dict[str, Any]] = {
    "full": {"gradient_checkpointing": True},
    "full-kept": {"gradient_checkpointing": False},
    "lora": {"use_peft": True, "dtype": "bfloat16", "gradient_checkpointing": True},
    "qlora": {
        "use_peft": True,
        "load_in_4bit": True,
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
    },
}


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of 0.4 billion random weights: large against what CUDA itself takes."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=24,
        num_attention_heads=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_planned_peak_is_what_is_measured(tmp_path: Path, model: Path, method: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": "the red shoe " * 200}) for _ in range(64)))
    values = {
        "model_name_or_path": str(model),
        "dataset_name": str(rows),
        "max_length": 512,
        "over_length": "truncate_text",
        "per_device_train_batch_size": 4,
        "max_steps": 14,
        "report_to": "none",
        "save_strategy": "no",
        "output_dir": str(tmp_path / "out"),
        "launch": {"gpus_per_node": 1, "strategy": "single"},
        **METHODS[method],
    }
    run_file = tmp_path / "run.yaml"
    run_file.write_text(json.dumps(values))  # YAML is a superset of JSON
    command = [sys.executable, "-m", "sailplan", "train", str(run_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    measured = json.loads((tmp_path / "out/measured.json").read_text())
    assert measured["comparable"]
    assert measured["active_bytes"] == pytest.approx(measured["planned_bytes"], rel=0.1)
