"""Base models are trained: answers end, and rows of added tokens come back bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import HfDeepSpeedConfig

from sailplan.errors import ModelError
from sailplan.model.load import load_model
from sailplan.model.processor import load_processor_and_tokens
from sailplan.model.trainable import lora_config
from sailplan.run.config import Run
from tests.support.base_models import base_model, old_llama
from tests.support.launch import Entry, flags

COLOURS = ("red", "green", "blue")


@pytest.fixture
def train(entry: Entry, tmp_path: Path) -> Callable[..., tuple[Path, str]]:
    """Trains on chats, and returns what was saved and printed."""

    def run(model: Path, question: str = "Say the word {}.", **fields: Any) -> tuple[Path, str]:
        rows = [
            [
                {"role": "user", "content": question.format(colour)},
                {"role": "assistant", "content": colour},
            ]
            for colour in COLOURS * 4
        ]
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
        values = {
            "model_name_or_path": model,
            "dataset_name": data,
            "output_dir": tmp_path / "out",
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": False,
            "per_device_train_batch_size": 6,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
        }
        end = entry(flags(values | fields))
        assert end.code == 0, end.err
        return tmp_path / "out", end.out + end.err

    return run


@pytest.mark.parametrize("template", [None, "chatml"])
def test_base_model_answers_and_stops_with_auto_classes_alone(
    train: Callable[..., tuple[Path, str]], tmp_path: Path, template: str | None
) -> None:
    fields = {"chat_template_path": template} if template else {}
    out, _ = train(base_model(tmp_path / "base"), max_steps=120, **fields)

    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    end = "<|im_end|>" if template else "</s>"
    for colour in COLOURS:
        asked = [{"role": "user", "content": f"Say the word {colour}."}]
        inputs = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        tokens = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]
        answer = tokenizer.decode(tokens[inputs["input_ids"].shape[1] :])
        assert answer.strip() == f"{colour}{end}"
    ids = [model.generation_config.pad_token_id, model.config.pad_token_id]
    assert ids == [tokenizer.pad_token_id] * 2
    assert model.config.bos_token_id == tokenizer.bos_token_id


def test_old_llama_trains_with_its_tokens_written(
    train: Callable[..., tuple[Path, str]], tmp_path: Path
) -> None:
    model = old_llama(tmp_path / "llama")
    out, printed = train(model, max_steps=2, eos_token="</s>", bos_token="<s>")

    assert "chat template: vicuna" in printed
    tokenizer = AutoTokenizer.from_pretrained(out)
    tuned = AutoModelForCausalLM.from_pretrained(out)
    for config in (tuned.config, tuned.generation_config):
        found = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
        assert found == (1, 2, 2)
    assert tokenizer("Say").input_ids[0] == 1
    assert tokenizer.decode(tokenizer("Say").input_ids[1:]).strip() == "Say"


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_rows_of_added_tokens_come_back_bit_for_bit_in_peft_alone(
    train: Callable[..., tuple[Path, str]], tmp_path: Path, tied: bool
) -> None:
    base = base_model(tmp_path / "base", tied=tied)
    added = {"added_tokens": ["<say>", "<never>"]}
    values = {"use_peft": True, "lora_r": 4, "gradient_check_steps": 2, "max_steps": 4}
    out, _ = train(base, question="<say> {}", **values, **added)

    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("<say> red and <never>", return_tensors="pt")
    plain = AutoModelForCausalLM.from_pretrained(base)
    plain.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    again = PeftModel.from_pretrained(plain, out).eval()

    run = Run(explicit={"model_name_or_path": str(base), "use_peft": True, **added})
    _, new = load_processor_and_tokens(run)
    ours = PeftModel.from_pretrained(load_model(run, added_ids=new), out).eval()
    with torch.no_grad():
        assert torch.equal(again(**ids).logits, ours(**ids).logits)
        fresh = load_model(run, added_ids=new)
        assert not torch.equal(ours(**ids).logits, fresh(**ids).logits)
    assert (out / "adapter_model.safetensors").stat().st_size < 30_000


def test_added_tokens_that_nobody_says_do_not_stop_a_run(
    train: Callable[..., tuple[Path, str]], tmp_path: Path
) -> None:
    values = {"use_peft": True, "lora_r": 4, "gradient_check_steps": 2, "max_steps": 5}
    _, printed = train(base_model(tmp_path / "base"), added_tokens=["<never>"], **values)

    assert "no gradient in this whole run: model.embed_tokens.token_adapter" in printed


def test_added_tokens_beside_an_adapter_under_zero3_name_the_way_out(tmp_path: Path) -> None:
    run = Run(
        explicit={
            "model_name_or_path": str(base_model(tmp_path / "base")),
            "use_peft": True,
            "added_tokens": ["<a>"],
        }
    )
    _, added = load_processor_and_tokens(run)
    model = load_model(run, added_ids=added)
    zero3 = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})  # noqa: F841  while it is here

    with pytest.raises(ModelError, match=r"lora_modules_to_save: \[embed_tokens, lm_head\]"):
        lora_config(run, model, added)
