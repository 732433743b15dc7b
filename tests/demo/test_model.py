from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from sailplan.demo.catalogue import SYSTEM_PROMPT
from sailplan.demo.model import SPECIAL_TOKENS, build_model


@pytest.fixture(scope="module")
def rows(catalogue: Path) -> list[dict[str, str]]:
    lines = (catalogue / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> Path:
    folder = tmp_path_factory.mktemp("model")
    texts = [f"{row['Product Name']}\n{row['description']}\n{row['listing']}" for row in rows]
    build_model(folder, texts=[SYSTEM_PROMPT, *texts], seed=0)
    return folder


def test_build_model_saves_what_the_auto_classes_load(folder: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert type(model).__name__ == "Qwen2VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen2VLProcessor"
    assert 300_000 < model.num_parameters() < 500_000
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    # bitsandbytes quantises in blocks of 64.
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert all(layer.in_features % 64 == 0 for layer in linear)


def test_build_model_with_the_same_seed_has_the_same_weights(tmp_path: Path) -> None:
    one, again, other = (
        build_model(tmp_path / name, texts=["a b"], seed=seed).state_dict()
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_tokenizer_keeps_any_text_and_qwens_special_tokens(
    folder: Path, rows: list[dict[str, str]]
) -> None:
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    for text in (rows[0]["description"], "Überall 日本 🙂\n\ttabs  and spaces"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer(rows[0]["description"]).input_ids) == 10
    for token in SPECIAL_TOKENS:
        assert len(tokenizer(token).input_ids) == 1
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_chat_template_marks_the_answer_and_its_end_of_turn(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A star."}]},
    ]
    question = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert processor.apply_chat_template(messages) == question + "A star.<|im_end|>\n"
    asked = processor.apply_chat_template(messages[:2], add_generation_prompt=True)
    assert asked == question
    plain = [{"role": m["role"], "content": "text"} for m in messages[1:]]
    marked = processor.tokenizer.apply_chat_template(
        plain, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(marked["input_ids"], marked["assistant_masks"], strict=True)
    trained = [token for token, is_trained in pairs if is_trained]
    assert processor.tokenizer.decode(trained) == "text<|im_end|>"


def test_model_takes_a_step_on_images_of_two_sizes_and_looks_at_them(folder: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    text = "<|vision_start|><|image_pad|><|vision_end|>A card"
    images = [Image.new("RGB", (56, 84), "red"), Image.new("RGB", (84, 84), "blue")]
    batch = processor(text=[text, text], images=images, padding=True, return_tensors="pt")
    counts = (batch["input_ids"] == model.config.image_token_id).sum(1).tolist()
    assert counts == [6, 9]
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    before = model(**batch, labels=labels).loss
    before.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert model(**batch, labels=labels).loss < before
    assert all(parameter.grad is not None for parameter in model.parameters())
