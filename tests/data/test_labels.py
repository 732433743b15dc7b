"""What is trained, spelled out token by token, with the families' published chat templates."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import transformers
import trl
from PIL import Image
from trl.chat_template_utils import get_training_chat_template

from sailplan.data.chat_template import ChatTemplate
from sailplan.data.encode import Encoder
from sailplan.data.sample import Message, Sample, Segment
from sailplan.errors import DataError, ModelError
from sailplan.model.families import family_of, tokenizer_of
from tests.data.reading import IMAGE, chat, pieces, turn
from tests.support.tiny import (
    MORE_FAMILIES,
    TEXT_FAMILIES,
    VISION_FAMILIES,
    build_processor,
    chat_template,
)

Load = Callable[..., Encoder]

SYSTEM = turn("system", "You are brief.")
ASK = turn("user", IMAGE, "What is it?")
ANSWER = turn("assistant", "A red square.")
MORE = turn("user", "How many?")
COUNT = turn("assistant", "Two.")


@pytest.fixture(scope="module")
def encoder(tiny_model: Callable[[str], Path]) -> Load:
    """Loads the encoder of a family, with another chat template where one is given."""

    def load(family: str, template: str | None = None, **options: Any) -> Encoder:
        folder = tiny_model(family)
        is_text = family in TEXT_FAMILIES
        auto = transformers.AutoTokenizer if is_text else transformers.AutoProcessor
        processor = auto.from_pretrained(folder)
        if template is not None:
            processor.chat_template = template
        config = transformers.AutoConfig.from_pretrained(folder)
        return Encoder(processor, family_of(config), **options)

    return load


def _read(encoder: Encoder, sample: Sample, *sizes: tuple[int, int]) -> list[str]:
    encoded = encoder.encode(sample, sizes)
    return pieces(tokenizer_of(encoder.processor), encoded.input_ids, encoded.labels)


def test_qwen2_vl_trains_answers_with_their_end_of_turn(encoder: Load) -> None:
    sample = chat(SYSTEM, ASK, ANSWER, MORE, COUNT)

    assert _read(encoder("qwen2_vl"), sample, (84, 56)) == [
        "-<|im_start|>system\nYou are brief.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|>×6<|vision_end|>What is it?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "+A red square.<|im_end|>",
        "-\n<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n",
        "+Two.<|im_end|>",
        "-\n",
    ]


def test_qwen2_vl_with_several_images_trains_none_of_their_tokens(encoder: Load) -> None:
    sample = chat(turn("user", IMAGE, "and", IMAGE), ANSWER, turn("user", IMAGE), COUNT)

    assert _read(encoder("qwen2_vl"), sample, (56, 56), (84, 84), (56, 84)) == [
        "-<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|>×4<|vision_end|>and"
        "<|vision_start|><|image_pad|>×9<|vision_end|><|im_end|>\n<|im_start|>assistant\n",
        "+A red square.<|im_end|>",
        "-\n<|im_start|>user\n<|vision_start|><|image_pad|>×6<|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\n",
        "+Two.<|im_end|>",
        "-\n",
    ]


def test_llava_trains_an_end_of_turn_that_its_template_lacks(encoder: Load) -> None:
    sample = chat(SYSTEM, ASK, ANSWER, MORE, COUNT)

    # The template writes no BOS, its tokenizer does. The blank before an answer is part of the
    # answer's first token, which is what the model gives behind `ASSISTANT:`.
    assert _read(encoder("llava"), sample, (70, 40)) == [
        "-<s>You are brief. USER: <image>×16\nWhat is it? ASSISTANT:",
        "+ A red square.</s>",
        "- USER: How many? ASSISTANT:",
        "+ Two.</s>",
        "- ",
    ]


def test_llava_with_several_images_trains_none_of_their_tokens(encoder: Load) -> None:
    sample = chat(turn("user", IMAGE, "Same?", IMAGE), COUNT)

    assert _read(encoder("llava"), sample, (56, 56), (90, 30)) == [
        "-<s>USER: <image>×16\n<image>×16\nSame? ASSISTANT:",
        "+ Two.</s>",
        "- ",
    ]


def test_llava_onevision_trains_no_line_break_of_its_header(encoder: Load) -> None:
    read = _read(encoder("llava_onevision"), chat(ASK, ANSWER, MORE, COUNT), (28, 28))

    assert [piece for piece in read if piece.startswith("+")] == [
        "+A red square.<|im_end|>",
        "+Two.<|im_end|>",
    ]


def test_text_model_whose_tokenizer_names_an_image_token_is_trained(encoder: Load) -> None:
    subject = encoder("gemma3_text")
    assert subject.processor.image_token == "<image_soft_token>"

    assert _read(subject, chat(MORE, COUNT))[1:] == ["+Two.<end_of_turn>", "-\n"]


def test_molmo2_counts_the_patches_that_stand_for_its_images(encoder: Load) -> None:
    subject = encoder("molmo2")
    encoded = subject.encode(chat(ASK, ANSWER), [(56, 56)])

    patch = tokenizer_of(subject.processor).convert_tokens_to_ids("<im_patch>")
    assert encoded.image_tokens == encoded.input_ids.count(patch) > 0


def test_pixtral_trains_answers_and_no_image_breaks(encoder: Load) -> None:
    sample = chat(SYSTEM, ASK, ANSWER, MORE, COUNT)

    # The template writes BOS, so the tokenizer must not add another.
    assert _read(encoder("pixtral"), sample, (48, 32)) == [
        "-<s>[INST]You are brief.\n\n[IMG]×3[IMG_BREAK][IMG]×3[IMG_END]What is it?[/INST]",
        "+A red square.</s>",
        "-[INST]How many?[/INST]",
        "+Two.</s>",
    ]


def test_pixtral_with_several_images_trains_the_answer_alone(encoder: Load) -> None:
    sample = chat(turn("user", IMAGE, IMAGE, "Same?"), COUNT)

    assert _read(encoder("pixtral"), sample, (32, 16), (16, 16)) == [
        "-<s>[INST][IMG]×2[IMG_END][IMG][IMG_END]Same?[/INST]",
        "+Two.</s>",
    ]


def test_template_that_moves_the_system_text_trains_the_last_answer(encoder: Load) -> None:
    sample = chat(SYSTEM, ASK, ANSWER, MORE, COUNT)

    # Rendered whole, this template drops the system text; what is trained is what the model is
    # given for its last answer, in which it stands.
    assert _read(encoder("pixtral", chat_template("mistral3")), sample, (16, 16)) == [
        "-<s>[INST][IMG][IMG_END]What is it?[/INST]A red square.</s>"
        "[INST]You are brief.\n\nHow many?[/INST]",
        "+Two.</s>",
    ]


def test_mllama_trains_answers_and_pins_no_date_into_image_chats(encoder: Load) -> None:
    sample = chat(ASK, ANSWER, turn("user", IMAGE, "How many?"), COUNT)

    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert _read(encoder("mllama"), sample, (60, 60), (200, 40)) == [
        f"-<|begin_of_text|>{head.format('user')}<|image|>What is it?<|eot_id|>"
        f"{head.format('assistant')}",
        "+A red square.<|eot_id|>",
        f"-{head.format('user')}<|image|>How many?<|eot_id|>{head.format('assistant')}",
        "+Two.<|eot_id|>",
    ]


def test_mllama_refuses_system_text_beside_images_by_its_template(encoder: Load) -> None:
    with pytest.raises(DataError, match="images is incompatible with system messages"):
        encoder("mllama").encode(chat(SYSTEM, ASK, ANSWER), [(60, 60)])


@pytest.mark.parametrize("pad", ["<|finetune_right_pad_id|>", "<|eot_id|>"])
def test_text_llama_trains_end_of_turn_even_where_it_is_the_padding(
    encoder: Load, pad: str
) -> None:
    subject = encoder("llama")
    subject.processor.pad_token = pad
    sample = chat(SYSTEM, turn("user", "What is it?"), ANSWER, MORE, COUNT)

    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert _read(subject, sample) == [
        f"-<|begin_of_text|>{head.format('system')}Cutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\nYou are brief.<|eot_id|>"
        f"{head.format('user')}What is it?<|eot_id|>{head.format('assistant')}",
        "+A red square.<|eot_id|>",
        f"-{head.format('user')}How many?<|eot_id|>{head.format('assistant')}",
        "+Two.<|eot_id|>",
    ]


@pytest.mark.parametrize(
    ("family", "prompt_end", "answer"),
    [
        ("llava", "A red square.</s> USER: How many? ASSISTANT:", "+ Two.</s>"),
        ("qwen2_vl", "How many?<|im_end|>\n<|im_start|>assistant\n", "+Two.<|im_end|>"),
    ],
)
def test_answer_marked_as_part_of_the_prompt_is_not_trained(
    encoder: Load, family: str, prompt_end: str, answer: str
) -> None:
    sample = chat(ASK, turn("assistant", "A red square.", trained=False), MORE, COUNT)

    read = _read(encoder(family), sample, (56, 56))

    assert read[0].endswith(prompt_end)
    assert read[1] == answer
    assert len(read) == 3


def test_everything_trains_all_text_but_images_and_the_first_token(encoder: Load) -> None:
    sample = chat(ASK, ANSWER)

    assert _read(encoder("qwen2_vl", everything=True), sample, (84, 56)) == [
        "-<|im_start|>",
        "+system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "-<|vision_start|><|image_pad|>×6<|vision_end|>",
        "+What is it?<|im_end|>\n<|im_start|>assistant\nA red square.<|im_end|>\n",
    ]
    assert _read(encoder("llava", everything=True), sample, (84, 56)) == [
        "-<s>",
        "+USER: ",
        "-<image>×16",
        "+\nWhat is it? ASSISTANT: A red square.</s> ",
    ]
    assert _read(encoder("pixtral", everything=True), sample, (32, 32)) == [
        "-<s>",
        "+[INST]",
        "-[IMG]×2[IMG_BREAK][IMG]×2[IMG_END]",
        "+What is it?[/INST]A red square.</s>",
    ]


def test_plain_text_trains_the_answer_and_eos_behind_an_untrained_prompt(encoder: Load) -> None:
    prompt, answer = "### Instruction:\nAdd.\n\n### Response:\n", "Two."
    sample = Sample(
        messages=[],
        segments=[Segment(text=prompt, trained=False), Segment(text=answer, trained=True)],
        images=[],
    )

    assert _read(encoder("llama"), sample) == [f"-<|begin_of_text|>{prompt}", "+Two.<|eot_id|>"]
    assert _read(encoder("llama", everything=True), sample) == [
        "-<|begin_of_text|>",
        f"+{prompt}Two.<|eot_id|>",
    ]


def test_plain_text_with_its_own_bos_and_eos_gets_no_second_ones(encoder: Load) -> None:
    text = "<|begin_of_text|>Two.<|eot_id|>"
    sample = Sample(messages=[], segments=[Segment(text=text, trained=True)], images=[])

    assert _read(encoder("llama"), sample) == ["-<|begin_of_text|>", "+Two.<|eot_id|>"]


def test_tokenizer_that_adds_eos_does_not_double_it(encoder: Load) -> None:
    from tokenizers import processors

    subject = encoder("llama")
    tokenizer = subject.processor
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|eot_id|>", special_tokens=[("<|eot_id|>", tokenizer.eos_token_id)]
    )
    sample = Sample(messages=[], segments=[Segment(text="One. Two.", trained=True)], images=[])

    assert _read(subject, sample)[-1].count("<|eot_id|>") == 1


def test_markers_around_the_role_header_train_the_words_alone(encoder: Load) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}<|im_start|>"
        "assistant\n{{ m['content'][0]['text'] }}<|im_end|>\n{% endgeneration %}{% else %}"
        "<|im_start|>user\n{{ m['content'][0]['text'] }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    sample = chat(turn("user", "What is it?"), ANSWER)

    assert _read(encoder("qwen2_vl", template), sample)[1:2] == ["+A red square.<|im_end|>"]


@pytest.mark.parametrize("name", ["deepseekv3", "deepseek_r1_distill", "gptoss"])
@pytest.mark.parametrize("words", ["A red square.", "<b>A</b> red square.", "<think of it>"])
def test_header_whose_prompt_goes_on_to_think_is_not_trained(
    encoder: Load, name: str, words: str
) -> None:
    folder = Path(trl.__file__).parent / "chat_templates"
    sample = chat(turn("user", "What is it?"), turn("assistant", words))

    subject = encoder("qwen2_vl", (folder / f"{name}_training.jinja").read_text())
    trained = "".join(piece[1:] for piece in _read(subject, sample) if piece.startswith("+"))

    assert "assistant" not in trained.lower()
    assert words in trained


def test_reasoning_template_trains_the_last_answer_with_its_empty_thoughts(encoder: Load) -> None:
    # Qwen3: earlier turns lose their thoughts, so neither its own prefixes nor TRL's training
    # version (which keeps them) say what the model's own template says.
    source = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    subject = encoder("qwen2_vl", source.read_text())
    sample = chat(turn("user", "What is it?"), ANSWER, MORE, COUNT)

    assert _read(subject, sample) == [
        "-<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA red square.<|im_end|>"
        "\n<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n",
        "+<think>\n\n</think>\n\nTwo.<|im_end|>",
        "-\n",
    ]
    assert subject.encode(sample, []).method == "last turn"


@pytest.mark.parametrize(
    ("family", "method"),
    [("qwen2_vl", "markers"), ("llava", "markers"), ("pixtral", "prefixes")],
)
def test_method_is_the_first_that_holds(encoder: Load, family: str, method: str) -> None:
    assert encoder(family).encode(chat(ASK, ANSWER), [(56, 56)]).method == method


def test_date_in_a_template_is_pinned_in_every_form() -> None:
    from tests.support.tiny import build_tokenizer

    tokenizer = build_tokenizer("llama")
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d, %d %B') }}{{ messages[0]['content'] }}"

    assert ChatTemplate.of(tokenizer).render([turn("user", "Hi")]) == "2024-07-26, 26 JulyHi"


@pytest.mark.parametrize("family", ["qwen2_vl", "mllama", "llama"])
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_parts_of_every_role_are_rendered_as_their_words(
    encoder: Load, family: str, role: str
) -> None:
    before = [] if role in ("system", "user") else [turn("user", "What is it?")]
    after = [turn("user", "What is it?")] if role == "system" else []

    text = encoder(family).template.render([*before, turn(role, "A boat."), *after])

    assert "A boat." in text
    assert "type" not in text


@pytest.mark.parametrize(
    "messages",
    [
        [turn("user", "What is it?")],
        [turn("user", "What is it?"), turn("assistant", "")],
        [turn("user", "What is it?"), turn("assistant", "Two.", trained=False)],
    ],
    ids=["no assistant turn", "empty answer", "answer of the prompt"],
)
@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "llama"])
def test_sample_with_nothing_to_train_on_is_an_error(
    encoder: Load, family: str, messages: list[Message]
) -> None:
    with pytest.raises(DataError, match=r"nothing in it is trained|no assistant turn"):
        encoder(family).encode(chat(*messages), [])


def test_model_without_chat_template_is_an_error_that_tells_the_way_out(encoder: Load) -> None:
    subject = encoder("llama")
    subject.processor.chat_template = None

    with pytest.raises(ModelError, match="chat_template_path"):
        subject.encode(chat(turn("user", "What is it?"), ANSWER), [])


# What others do with the same conversations. Where one of these fails, a workaround may go.

MARKED = (
    "{{ bos_token }}{%- for m in messages %}"
    "{%- if m['role'] == 'assistant' -%}Assistant: {% generation %}"
    "{{ m['content'][0]['text'] }}EOS{% endgeneration %}{%- else -%}User: "
    "{%- for part in m['content'] %}"
    "{{- 'IMAGE' if part['type'] == 'image' else part['text'] -}}{%- endfor %}{{ '\\n' }}"
    "{%- endif %}{%- endfor %}"
)


@pytest.mark.parametrize("family", [*VISION_FAMILIES, *MORE_FAMILIES])
def test_masks_of_marked_templates_are_right_unless_the_processor_adds_words(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    processor = transformers.AutoProcessor.from_pretrained(tiny_model(family))
    eos = processor.tokenizer.eos_token
    picture = {"type": "image", "image": Image.new("RGB", (60, 84))}
    content = [picture, {"type": "text", "text": "What is it?"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A red square."}]}

    found = processor.apply_chat_template(
        [{"role": "user", "content": content}, answer],
        chat_template=MARKED.replace("EOS", eos).replace("IMAGE", processor.image_token),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"return_tensors": "pt"},
    )

    pairs = zip(found["input_ids"][0], found["assistant_masks"][0], strict=True)
    said = processor.tokenizer.decode([int(token) for token, is_trained in pairs if is_trained])
    assert (said.strip() == f"A red square.{eos}") == (family not in ("molmo2", "paligemma"))


def test_template_of_llava_writes_no_bos_and_its_rows_begin_with_one(encoder: Load) -> None:
    subject = encoder("llava")
    tokenizer = tokenizer_of(subject.processor)
    text = subject.template.render([ASK, ANSWER])

    bare = tokenizer(text, add_special_tokens=False)["input_ids"]

    assert tokenizer.bos_token_id not in bare
    ids = subject.encode(chat(ASK, ANSWER), [(56, 56)]).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_template_of_llama_prints_the_day_and_ours_the_same_every_day(encoder: Load) -> None:
    tokenizer = encoder("llama").processor
    messages = [{"role": "user", "content": "What is it?"}]

    own = tokenizer.apply_chat_template(messages, tokenize=False)

    days = {f"{date.today() - timedelta(days=n):%d %b %Y}" for n in (0, 1)}  # it may be midnight
    assert any(day in own for day in days)
    ours = ChatTemplate.of(tokenizer).render([turn("user", "What is it?")])
    assert "26 Jul 2024" in ours


def test_training_templates_of_trl_are_found_by_their_exact_text_alone() -> None:
    processors = {name: build_processor(name)[1] for name in ("qwen2_vl", "mllama")}
    known = get_training_chat_template(processors["qwen2_vl"])
    assert known is not None
    assert "{% generation %}" in known

    processors["qwen2_vl"].chat_template += " "

    for processor in processors.values():
        with pytest.raises(ValueError, match="not training-compatible"):
            get_training_chat_template(processor)


@pytest.mark.parametrize("name", ["qwen3", "phi3", "gptoss", "nemotron_3_nano"])
def test_template_whose_prompts_are_no_prefixes_trains_the_words_of_answers_alone(
    encoder: Load, name: str
) -> None:
    source = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    subject = encoder("qwen2_vl", source.read_text())
    messages = [turn("user", "What is it?"), ANSWER, MORE, COUNT]
    whole = subject.template.render(messages)
    starts = [
        subject.template.render(messages[:length], add_generation_prompt=length != 2)
        for length in (1, 2, 3)
    ]
    assert not all(whole.startswith(start) for start in starts)

    trained = [piece for piece in _read(subject, chat(*messages)) if piece.startswith("+")]

    for piece, words in zip(trained[::-1], ("Two.", "A red square."), strict=False):
        assert words in piece
        assert not {"user", "assistant", "What is it?", "How many?"} & {*piece.split("\n")}
