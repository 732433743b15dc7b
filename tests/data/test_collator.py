"""Batches, against the processors' own calls, and what the models make of them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from sailplan.data.chat_template import ChatTemplate
from sailplan.data.collator import Collator
from sailplan.data.conversations import Messages
from sailplan.data.encode import Encoder
from sailplan.data.images import ImageOpener
from sailplan.data.labels import UNTRAINED, Endings, mark_conversation
from sailplan.errors import DataError
from sailplan.model.families import Family, family_of, tokenizer_of
from tests.data.reading import IMAGE
from tests.support.tiny import FAMILIES, VISION_FAMILIES

FORMAT = Messages(image_columns=("images",))
OPENER = ImageOpener(root=None)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A family with all that stands between its rows and its batches."""

    processor: Any
    family: Family
    encoder: Encoder
    folder: Path

    def row(self, question: str, answer: str, *sizes: tuple[int, int]) -> dict[str, Any]:
        """A row as it is stored: encoded, with its raw columns."""
        images = [{"path": None, "bytes": _png(size)} for size in sizes]
        parts = [*[dict(IMAGE) for _ in sizes], {"type": "text", "text": question}]
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
        raw = {"messages": messages, "images": images}
        encoded = self.encoder.encode(FORMAT.sample(raw), sizes)
        return {**raw, "input_ids": encoded.input_ids, "labels": encoded.labels}

    def collator(self, **options: Any) -> Collator:
        return Collator(self.processor, self.family, FORMAT, OPENER, **options)

    def model(self) -> Any:
        auto = (
            transformers.AutoModelForImageTextToText
            if self.family.is_vision
            else transformers.AutoModelForCausalLM
        )
        return auto.from_pretrained(self.folder)


def _png(size: tuple[int, int]) -> bytes:
    pixels = np.random.default_rng(sum(size)).integers(
        0, 256, (size[1], size[0], 3), dtype=np.uint8
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def setting(tiny_model: Callable[[str], Path]) -> Callable[[str], Setting]:
    def load(name: str) -> Setting:
        folder = tiny_model(name)
        auto = transformers.AutoTokenizer if name == "llama" else transformers.AutoProcessor
        processor = auto.from_pretrained(folder)
        tokenizer_of(processor).padding_side = "right"
        family = family_of(transformers.AutoConfig.from_pretrained(folder))
        encoder = Encoder(processor, family)
        return Setting(processor=processor, family=family, encoder=encoder, folder=folder)

    return load


def _own_call(setting: Setting, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The processor's full call: text and real images of the batch at once."""
    template = ChatTemplate.of(setting.processor)
    endings = Endings.of(setting.processor, setting.family.untrained_token_ids(setting.processor))
    texts = [
        mark_conversation(FORMAT.sample(r)["messages"], template, endings, everything=False).text
        for r in rows
    ]
    images: Any = [[Image.open(io.BytesIO(i["bytes"])) for i in row["images"]] for row in rows]
    if not setting.family.nested_images:
        images = [image for row in images for image in row]
    bos = tokenizer_of(setting.processor).bos_token
    with_images = {"images": images} if any(row["images"] for row in rows) else {}
    return dict(
        setting.processor(
            text=texts,
            **with_images,
            padding=True,
            return_tensors="pt",
            add_special_tokens=not (bos and texts[0].startswith(bos)),
        )
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_equals_the_processors_own_call(setting: Callable[[str], Setting], name: str) -> None:
    subject = setting(name)
    sizes = [(56, 56), (200, 64), (31, 97)] if subject.family.is_vision else []
    rows = [
        subject.row("What is it?", "A red square.", *sizes[:1]),
        subject.row("Say nothing but a very long word of many tokens.", "Two."),
        subject.row("Same?", "A large green triangle on white.", *sizes[1:]),
    ]

    batch = subject.collator()(rows)

    own = _own_call(subject, rows)
    assert batch.keys() == own.keys() | {"labels"}
    for key, value in own.items():
        assert batch[key].dtype == value.dtype, key
        assert torch.equal(batch[key], value), key


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_of_batch_are_padded_and_trainable(
    setting: Callable[[str], Setting], name: str
) -> None:
    subject = setting(name)
    sizes = [(56, 56)] if subject.family.is_vision else []
    rows = [
        subject.row("What is it?", "A red square.", *sizes),
        subject.row("How many?", "Two."),
    ]

    batch = subject.collator()(rows)

    for row, labels in zip(rows, batch["labels"].tolist(), strict=True):
        assert labels[: len(row["labels"])] == row["labels"]
        assert set(labels[len(row["labels"]) :]) <= {UNTRAINED}
    with torch.no_grad():
        assert torch.isfinite(subject.model()(**batch).loss)


def test_padding_that_is_eos_hides_no_end_of_turn(setting: Callable[[str], Setting]) -> None:
    subject = setting("llama")
    subject.processor.pad_token = subject.processor.eos_token
    rows = [subject.row("How many?", "Two."), subject.row("How many?", "A red square, and more.")]

    batch = subject.collator()(rows)

    length = len(rows[0]["input_ids"])
    eos = subject.processor.eos_token_id
    assert batch["input_ids"][0, length - 1 :].unique().tolist() == [eos]
    assert batch["labels"][0, length - 1] == eos
    assert batch["labels"][0, length:].unique().tolist() == [UNTRAINED]
    assert batch["attention_mask"][0].sum() == length


@pytest.mark.parametrize("name", [n for n in VISION_FAMILIES if n != "mllama"])
def test_dummy_image_changes_no_loss_and_reaches_the_vision_tower(
    setting: Callable[[str], Setting], name: str
) -> None:
    subject, model = setting(name), setting(name).model()
    rows = [subject.row("How many red circles?", "Two."), subject.row("What?", "A red square.")]

    without = model(**subject.collator(dummy_image=False)(rows))
    batch = subject.collator()(rows)
    outputs = model(**batch)
    outputs.loss.backward()

    assert batch["attention_mask"].sum() > sum(len(row["input_ids"]) for row in rows)
    torch.testing.assert_close(outputs.loss, without.loss, rtol=1e-6, atol=1e-6)
    for index, row in enumerate(rows):
        tokens = slice(len(row["input_ids"]))
        torch.testing.assert_close(outputs.logits[index, tokens], without.logits[index, tokens])
    unused = subject.family.unused_parameters(model)
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (parameter_name in unused), parameter_name
        if parameter_name.startswith(subject.family.vision_prefixes):
            assert parameter.grad is None or not parameter.grad.any()


def test_batch_with_an_image_gets_no_dummy(setting: Callable[[str], Setting]) -> None:
    subject = setting("qwen2_vl")
    rows = [subject.row("How many?", "Two."), subject.row("What?", "A square.", (56, 56))]

    assert len(subject.collator()(rows)["image_grid_thw"]) == 1


def test_text_only_batch_of_cross_attention_family_has_no_image(
    setting: Callable[[str], Setting],
) -> None:
    subject = setting("mllama")

    batch = subject.collator()([subject.row("How many?", "Two.")])

    assert batch.keys() == {"input_ids", "attention_mask", "labels"}


def test_length_is_padded_to_a_multiple(setting: Callable[[str], Setting]) -> None:
    subject = setting("llama")

    batch = subject.collator(pad_to_multiple_of=64)([subject.row("How many?", "Two.")])

    assert batch["input_ids"].shape[1] % 64 == 0


def test_collator_survives_the_way_into_a_worker(setting: Callable[[str], Setting]) -> None:
    subject = setting("qwen2_vl")
    rows = [subject.row("What?", "A square.", (70, 40))]
    collator = subject.collator()

    again = pickle.loads(pickle.dumps(collator))

    for key, value in collator(rows).items():
        assert torch.equal(again(rows)[key], value)


def test_image_changed_after_counting_is_a_data_error(setting: Callable[[str], Setting]) -> None:
    subject = setting("qwen2_vl")
    row = subject.row("What?", "A square.", (56, 56))
    row["images"] = [{"path": None, "bytes": _png((200, 200))}]

    with pytest.raises(DataError, match="an image was changed after its tokens were counted"):
        subject.collator()([row])


# What TRL's collator makes of the same rows. Where this fails, ours may be worth less.


def _by_trl(subject: Setting, size: tuple[int, int]) -> dict[str, Any]:
    image = Image.open(io.BytesIO(_png(size)))
    chat = [("user", "What is it?"), ("assistant", "A red square.")]
    messages = [{"role": role, "content": text} for role, text in chat]
    collate = DataCollatorForVisionLanguageModeling(subject.processor)
    return dict(collate([{"images": [image], "messages": messages}]))


def test_labels_of_trl_are_image_tokens_for_a_good_part_and_ours_never(
    setting: Callable[[str], Setting],
) -> None:
    subject = setting("qwen2_vl")
    image_id = subject.processor.image_token_id

    theirs = _by_trl(subject, (300, 200))["labels"]
    ours = subject.collator()([subject.row("What is it?", "A red square.", (300, 200))])["labels"]

    assert (theirs == image_id).sum() / (theirs != UNTRAINED).sum() > 0.2
    assert image_id in theirs
    assert image_id not in ours


def test_labels_of_trl_are_beyond_the_vocabulary_of_mllama_and_ours_within(
    setting: Callable[[str], Setting],
) -> None:
    subject = setting("mllama")

    with pytest.raises(IndexError, match="out of bounds"):
        subject.model()(**_by_trl(subject, (60, 60)))

    ours = subject.collator()([subject.row("What is it?", "A red square.", (60, 60))])
    assert ours["labels"].max() < subject.family.vocabulary_size
    assert subject.model()(**ours).loss.isfinite()
