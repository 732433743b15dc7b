"""PaliGemma's samples: ids, labels and token types as its processor has them, batched as alone."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from sailplan.data.collator import Collator
from sailplan.data.conversations import Messages
from sailplan.data.encode import Encoder
from sailplan.data.images import ImageOpener
from sailplan.data.labels import UNTRAINED
from sailplan.data.sample import Message, Part
from sailplan.errors import DataError, RunFileError
from sailplan.evaluate.generate import Question, Sampling, generate
from sailplan.evaluate.losses import row_losses
from sailplan.evaluate.speaker import Speaker
from sailplan.model.families import family_of
from sailplan.model.templates import built_in
from sailplan.run.config import Run
from tests.data.reading import IMAGE, chat, pieces, turn
from tests.support.packed import png

FORMAT = Messages(image_columns=("images",))


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("paligemma")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    family = family_of(AutoConfig.from_pretrained(folder))
    return Encoder(AutoProcessor.from_pretrained(folder), family)


@pytest.fixture(scope="module")
def collate(encoder: Encoder) -> Collator:
    return Collator(encoder.processor, encoder.family, FORMAT, ImageOpener(root=None))


def row(
    encoder: Encoder, question: str, answer: str, *sizes: tuple[int, int], system: str = ""
) -> dict[str, Any]:
    """An encoded row about noise of these sizes."""
    images = [{"path": None, "bytes": png(size, seed)} for seed, size in enumerate(sizes)]
    asked = [*({"type": "image"} for _ in sizes), {"type": "text", "text": question}]
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    raw = {"messages": messages, "images": images}
    found = encoder.encode(FORMAT.sample(raw), sizes)
    return {**raw, "input_ids": found.input_ids, "labels": found.labels}


def pictures(of_row: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(BytesIO(image["bytes"])).convert("RGB") for image in of_row["images"]]


ASKED = [
    ("What is it?", "Two red squares.", [(60, 84)]),
    ("caption en", "a cat", [(300, 20), (33, 47)]),
    ("detect shoe ;  hat", "<loc0012><loc0345><loc0678><loc0910> shoe", [(1, 1)]),
    ("answer\nin two lines\n", "  One.\nTwo.", [(56, 56), (56, 56), (9, 200)]),
]


def test_batch_is_that_of_the_processor_with_eos_trained(
    encoder: Encoder, collate: Collator
) -> None:
    processor = encoder.processor
    rows = [row(encoder, question, answer, *sizes) for question, answer, sizes in ASKED]

    batch = collate(rows)

    own = processor(
        text=[processor.image_token * len(sizes) + question for question, _, sizes in ASKED],
        images=[pictures(of_row) for of_row in rows],
        suffix=[answer.lstrip() for _, answer, _ in ASKED],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    for name in ("input_ids", "attention_mask", "token_type_ids", "pixel_values"):
        assert torch.equal(batch[name], own[name]), name
    assert torch.equal(batch["labels"], own["labels"])
    eos = processor.tokenizer.eos_token_id
    assert ((batch["labels"] == eos).sum(dim=1) == 1).all()
    assert not (batch["labels"] == processor.image_token_id).any()


def test_prompt_and_answer_stand_where_the_processor_puts_them(encoder: Encoder) -> None:
    sample = row(encoder, "What is it?", "A cat.", (60, 84), (60, 84), system="Be brief.")

    shown = pieces(encoder.processor.tokenizer, sample["input_ids"], sample["labels"])

    assert shown == ["-<image>×32<bos>Be brief.\nWhat is it?\n", "+A cat.<eos>"]


def test_of_several_answers_the_last_is_trained_behind_all_that_was_said(encoder: Encoder) -> None:
    said = chat(
        turn("user", "One?", IMAGE),
        turn("assistant", "One."),
        turn("user", IMAGE, "Two?"),
        turn("assistant", "Two."),
        turn("user", "Three?"),
        turn("assistant", "Three.", trained=False),
    )

    found = encoder.encode(said, [(60, 84), (20, 20)])

    shown = pieces(encoder.processor.tokenizer, found.input_ids, found.labels)
    assert found.method == "last turn"
    assert shown == ["-<image>×32<bos>One?\nOne.\nTwo?\n", "+Two.<eos>"]


def test_template_of_other_turns_trains_the_last_answer_alone(
    folder: Path, encoder: Encoder
) -> None:
    """Whatever the template, the processor frames what it renders, and earlier answers are seen."""
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = built_in("vicuna", processor).text
    said = chat(
        turn("user", IMAGE, "One?"),
        turn("assistant", "One."),
        turn("user", "Two?"),
        turn("assistant", "Two."),
    )

    found = Encoder(processor, encoder.family).encode(said, [(60, 84)])

    prompt, answer = pieces(processor.tokenizer, found.input_ids, found.labels)
    assert (found.method, answer) == ("last turn", "+Two.<eos>")
    assert "USER: <image>×16<bos>\nOne? ASSISTANT: One.<eos>" in prompt
    assert prompt.endswith("USER: Two? ASSISTANT:\n")


def _gradients(model: Any, batches: list[dict[str, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
    model.train()
    model.zero_grad()
    trained, total = sum(int((b["labels"] != UNTRAINED).sum()) for b in batches), 0.0
    for batch in batches:
        loss = model(**batch, use_cache=False, num_items_in_batch=trained).loss
        loss.backward()
        total += float(loss.detach())
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.eval()
    return total, found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_batch_has_the_loss_and_gradients_of_its_samples(
    model: Any, encoder: Encoder, collate: Collator, attention: str
) -> None:
    model.set_attn_implementation(attention)
    rows = [
        row(encoder, "What is it?", "A red square beside a green triangle.", (84, 60), (40, 90)),
        row(encoder, "And this one here?", "A line.", (120, 50)),
    ]

    alone, gradients = _gradients(model, [collate([of_row]) for of_row in rows])
    together, found = _gradients(model, [collate(rows)])

    model.set_attn_implementation("sdpa")
    assert together == pytest.approx(alone, rel=1e-5)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (found[name] - gradient).norm() <= 1e-5 * max(gradient.norm(), 1e-3), name


def test_token_sees_the_whole_prompt_and_no_later_token_of_the_answer(
    model: Any, encoder: Encoder, collate: Collator
) -> None:
    of_row = row(encoder, "What is it now?", "A red square and a blue one.", (84, 60))
    start = next(i for i, label in enumerate(of_row["labels"]) if label != UNTRAINED)

    def logits(changed: int | None = None) -> torch.Tensor:
        ids = list(of_row["input_ids"])
        if changed is not None:
            ids[changed] += 1
        batch = collate([{**of_row, "input_ids": ids}])
        with torch.no_grad():
            said = model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False)
        return said.logits[0]  # type: ignore[no-any-return]

    before = logits()
    in_prompt, in_answer = logits(start - 3), logits(start + 2)

    same = (before - in_prompt).abs().amax(dim=1) < 1e-6
    assert not same.any()  # the first image token too
    same = (before - in_answer).abs().amax(dim=1) < 1e-6
    assert same[: start + 2].all()
    assert not same[start + 2 :].any()


def test_positions_begin_with_1_and_are_left_to_the_model(
    model: Any, encoder: Encoder, collate: Collator
) -> None:
    batch = collate([row(encoder, "What is it?", "A line.", (60, 84))])
    assert "position_ids" not in batch
    seen: list[torch.Tensor] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["position_ids"])

    with model.model.language_model.register_forward_pre_hook(look, with_kwargs=True):
        model(**batch, use_cache=False)

    assert seen[0].tolist() == [list(range(1, batch["input_ids"].shape[1] + 1))]


def test_held_out_loss_is_that_of_the_processors_batch(
    model: Any, encoder: Encoder, collate: Collator
) -> None:
    import datasets

    rows = [row(encoder, question, answer, *sizes) for question, answer, sizes in ASKED[:2]]
    processor = encoder.processor
    for of_row in rows:
        del of_row["messages"]
        of_row["length"] = len(of_row["input_ids"])

    found = dict(row_losses(model, collate, datasets.Dataset.from_list(rows)))

    for index, (question, answer, sizes) in enumerate(ASKED[:2]):
        own = processor(
            text=[processor.image_token * len(sizes) + question],
            images=[pictures(rows[index])],
            suffix=[answer],
            return_tensors="pt",
        )
        with torch.no_grad():
            loss = float(model(**own).loss)
        assert found[index].loss_sum / found[index].num_tokens == pytest.approx(loss, rel=1e-5)


def test_answer_is_that_of_the_processor_and_the_model(model: Any, encoder: Encoder) -> None:
    processor, shown = encoder.processor, Image.open(BytesIO(png((90, 70), 3)))
    speaker = Speaker.of(model, processor)
    questions = [
        Question(
            messages=[
                Message(role="user", content=[*[IMAGE] * count, Part(type="text", text=text)])
            ],
            images=[shown] * count,
        )
        for text, count in (("What is this? Say it in full.", 1), ("Why?", 2))
    ]
    sampling = Sampling(max_new_tokens=12, temperature=0)

    together = list(generate(speaker, questions, sampling, batch_size=2))

    assert together == list(generate(speaker, questions, sampling))
    for question, answer in zip(questions, together, strict=True):
        text = question.messages[0]["content"][-1]["text"]
        own = processor(
            text=processor.image_token * len(question.images) + text,
            images=[list(question.images)],
            return_tensors="pt",
        )
        asked = processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [
                        *({"type": "image", "image": image} for image in question.images),
                        {"type": "text", "text": text},
                    ],
                }
            ],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert torch.equal(asked["input_ids"], own["input_ids"])
        length = own["input_ids"].shape[1]
        said = model.generate(**own, max_new_tokens=12, do_sample=False)[0, length:]
        assert answer.text == processor.decode(said, skip_special_tokens=True).strip()
        assert answer.text


def test_text_without_an_image_is_refused(model: Any, encoder: Encoder) -> None:
    reason = "no image, and paligemma takes no text without one; drop the row"
    with pytest.raises(DataError, match=reason):
        row(encoder, "What?", "Nothing.")
    question = Question(messages=[turn("user", "What?")])
    with pytest.raises(DataError, match=reason):
        next(generate(Speaker.of(model, encoder.processor), [question], Sampling()))


def test_image_in_the_answer_is_refused(encoder: Encoder) -> None:
    said = chat(turn("user", IMAGE, "What?"), turn("assistant", IMAGE, "This."))
    with pytest.raises(DataError, match="the last answer holds an image"):
        encoder.encode(said, [(60, 84), (60, 84)])


@pytest.mark.parametrize("name", ["assistant_only_loss", "completion_only_loss"])
def test_training_all_text_is_refused(encoder: Encoder, name: str) -> None:
    run = Run.from_flags([f"--{name}", "false", "--model_name_or_path", "x"])
    with pytest.raises(RunFileError, match=f"{name}: false for paligemma, whose prompt sees"):
        Encoder.of(run, encoder.processor, encoder.family)


def test_rank_without_a_sample_trains_nothing(model: Any, collate: Collator) -> None:
    batch = collate([])
    loss = model(**batch, use_cache=False, num_items_in_batch=3).loss
    assert float(loss.detach()) == 0
    assert not batch["token_type_ids"].any()
