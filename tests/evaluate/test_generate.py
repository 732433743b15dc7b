from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from sailplan.data.sample import Message, Part
from sailplan.errors import DataError, ModelError
from sailplan.evaluate.generate import (
    GREEDY,
    Question,
    Sampling,
    generate,
    text_streamer,
)
from sailplan.evaluate.speaker import Speaker, load_speaker
from tests.support.tiny import FAMILIES, MORE_FAMILIES, TEXT_FAMILIES

SHORT = Sampling(max_new_tokens=12, temperature=0.0)


def _question(text: str, *images: Image.Image, system: str | None = None) -> Question:
    user = [Part(type="image") for _ in images] + [Part(type="text", text=text)]
    messages = [Message(role="user", content=user)]
    if system:
        messages.insert(0, Message(role="system", content=[Part(type="text", text=system)]))
    return Question(messages=messages, images=images)


def _said(speaker: Speaker, question: Question, sampling: Sampling = SHORT) -> str:
    (answer,) = generate(speaker, [question], sampling)
    return answer.text


def _save_adapter(model: Path, folder: Path, *, seed: int = 0) -> Path:
    """Saves an adapter whose weights are random, so that it changes every answer."""
    torch.manual_seed(seed)
    settings = peft.LoraConfig(
        r=8,
        lora_alpha=256,
        target_modules=r".*layers.*self_attn\.(q|k|v|o)_proj",
        init_lora_weights=False,
    )
    is_text = AutoConfig.from_pretrained(model).model_type == "llama"
    auto = AutoModelForCausalLM if is_text else AutoModelForImageTextToText
    tuned = peft.get_peft_model(auto.from_pretrained(model), settings)
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("qwen2_vl")


@pytest.fixture(scope="module")
def adapter(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_adapter(qwen, tmp_path_factory.mktemp("adapter"))


OTHERS = [
    pytest.param(family, marks=() if family == "gemma3" else pytest.mark.slow)
    for family in MORE_FAMILIES
]


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_generate_of_a_batch_equals_one_by_one(
    family: str, tiny_model: Callable[[str], Path]
) -> None:
    speaker = load_speaker(str(tiny_model(family)))
    red, blue = Image.new("RGB", (56, 84), "red"), Image.new("RGB", (112, 56), "blue")
    images = [] if family in TEXT_FAMILIES else [red, blue]
    questions = [
        _question("What is this? Say it in as many words as there are.", *images[:1]),
        _question("Why?", *images[1:]),
        _question("How many?", *images),
        *([] if family == "paligemma" else [_question("What else?")]),
    ]
    alone = list(generate(speaker, questions, SHORT))
    assert list(generate(speaker, questions, SHORT, batch_size=4)) == alone
    assert all(answer.text for answer in alone)


def test_answer_that_ends_early_is_told_so_and_changes_no_other(qwen: Path) -> None:
    speaker = load_speaker(str(qwen))
    questions = [_question(f"What is {word}?") for word in ("this", "that", "it", "there")]
    tokens = [_greedy_tokens(speaker, question) for question in questions]
    # What the first says third ends an answer from now on.
    end = tokens[0][2]
    ending = replace(speaker, end_token_ids=(end,))

    answers = list(generate(ending, questions, SHORT, batch_size=4))

    assert answers[0].ended
    assert answers[0].num_tokens == tokens[0].index(end) + 1
    assert answers == list(generate(ending, questions, SHORT))
    for answer, said in zip(answers, tokens, strict=True):
        shown = said[: said.index(end)] if end in said else said
        assert answer.ended == (end in said)
        assert answer.num_tokens == len(shown) + answer.ended
        text = speaker.processor.tokenizer.decode(shown, skip_special_tokens=True)
        assert answer.text == text.strip()
    assert {answer.ended for answer in answers} == {True, False}


def _greedy_tokens(speaker: Speaker, question: Question) -> list[int]:
    """What the model says if nothing ends an answer, by the plainest of loops."""
    text = speaker.template.render(question.messages, add_generation_prompt=True)
    ids = speaker.processor(text=[text], return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(SHORT.max_new_tokens):
            likeliest = speaker.model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, likeliest], dim=1)
    said: list[int] = ids[0, start:].tolist()
    return said


def test_generate_sees_the_image(qwen: Path) -> None:
    speaker = load_speaker(str(qwen))
    answers = {
        _said(speaker, _question("What?", Image.new("RGB", (84, 84), colour)))
        for colour in ("red", "blue", "white", "black")
    }
    assert len(answers) > 1


def test_sampling_with_a_seed_repeats_and_without_greed_varies(qwen: Path) -> None:
    speaker = load_speaker(str(qwen))
    speaker.model.generation_config.top_k = 1  # as Qwen2-VL ships it; would undo any temperature

    def answer(seed: int) -> str:
        sampling = Sampling(max_new_tokens=12, temperature=1.5, seed=seed)
        return _said(speaker, _question("Why?"), sampling)

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(4)}) == 4
    assert GREEDY.max_new_tokens == 256
    several = [_question("Why?"), _question("How so?"), _question("Since when is that?")]
    sampling = Sampling(max_new_tokens=12, temperature=1.5, seed=3)
    first, second = (list(generate(speaker, several, sampling, batch_size=2)) for _ in range(2))
    assert first == second


def test_answer_ends_with_the_turn_even_where_the_model_ends_with_the_text(
    tiny_model: Callable[[str], Path],
) -> None:
    speaker = load_speaker(str(tiny_model("qwen2_vl")))
    tokenizer = speaker.processor.tokenizer
    speaker.model.generation_config.eos_token_id = tokenizer.pad_token_id  # as base models have it
    again = Speaker.of(speaker.model, speaker.processor)
    names = tokenizer.convert_ids_to_tokens(again.end_token_ids)
    assert sorted(names) == ["<|endoftext|>", "<|im_end|>"]


def test_streamer_is_given_the_whole_answer(qwen: Path) -> None:
    speaker = load_speaker(str(qwen))
    heard: list[str] = []
    streamer = text_streamer(speaker, heard.append)
    (answer,) = generate(speaker, [_question("Why?")], SHORT, streamer=streamer)
    assert "".join(heard).strip() == answer.text
    assert answer.text


@pytest.mark.parametrize("number", [0, 2])
def test_generate_with_other_than_one_image_for_each_place_is_refused(
    qwen: Path, number: int
) -> None:
    question = _question("What?", Image.new("RGB", (56, 56)))
    wrong = Question(messages=question.messages, images=[*question.images] * number)
    with pytest.raises(DataError, match=rf"1 image placeholder\(s\) for {number} image\(s\)"):
        next(generate(load_speaker(str(qwen)), [wrong], SHORT))


def test_generate_with_an_image_for_a_text_model_is_refused(
    tiny_model: Callable[[str], Path],
) -> None:
    question = _question("What?", Image.new("RGB", (56, 56)))
    with pytest.raises(DataError, match="images for a model that sees none"):
        next(generate(load_speaker(str(tiny_model("llama"))), [question], SHORT))


def test_adapter_by_its_own_folder_or_on_its_base_answers_differently_from_the_base(
    qwen: Path, adapter: Path
) -> None:
    question = _question("Why?", Image.new("RGB", (84, 56), "green"))

    def answer(speaker: Speaker) -> str:
        return _said(speaker, question)

    base = answer(load_speaker(str(qwen)))
    tuned = answer(load_speaker(str(adapter)))
    assert tuned != base
    assert answer(load_speaker(str(qwen), adapter=str(adapter))) == tuned
    assert answer(load_speaker(str(adapter), skip_adapter=True)) == base
    quantised = load_speaker(str(adapter), load_in_4bit=True)
    assert any(type(module).__name__ == "Linear4bit" for module in quantised.model.modules())
    assert answer(quantised) != base


@pytest.mark.parametrize("family", ["qwen2_vl", "llama"])
def test_adapter_brings_the_processor_that_it_was_tuned_with(
    family: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tiny_model(family)
    _save_adapter(base, tmp_path)
    processor = AutoProcessor.from_pretrained(base)
    processor.chat_template = "{% for m in messages %}Q: {{ m.content[0].text }}{% endfor %} A:"
    processor.save_pretrained(tmp_path)
    question = _question("Why?")
    tuned, plain = (load_speaker(str(tmp_path), skip_adapter=skip) for skip in (False, True))
    assert tuned.template.render(question.messages) == "Q: Why? A:"
    assert plain.template.render(question.messages) != "Q: Why? A:"


def test_adapter_that_lacks_tensors_is_refused(qwen: Path, tmp_path: Path) -> None:
    folder = _save_adapter(qwen, tmp_path)
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop(max(weights))
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="lacks 1 tensors"):
        load_speaker(str(folder))


def test_adapter_of_another_model_is_refused(
    adapter: Path, tiny_model: Callable[[str], Path]
) -> None:
    with pytest.raises(ModelError) as refused:
        load_speaker(str(tiny_model("llama")), adapter=str(adapter))
    assert "\n" not in str(refused.value)
    assert str(adapter) in str(refused.value)


def test_adapter_without_weights_or_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        load_speaker(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="does not name a base model"):
        load_speaker(str(tmp_path))
