"""Every family's images: what is counted ahead is what the model gets, for any shape of picture."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from sailplan.data.collator import Collator
from sailplan.data.conversations import Messages
from sailplan.data.encode import Encoder
from sailplan.data.images import ImageOpener
from sailplan.data.labels import UNTRAINED
from sailplan.errors import DataError
from sailplan.model.families import Family, family_of
from tests.support.tiny import MORE_FAMILIES, VISION_FAMILIES

SIZES = {
    "small": (60, 84),
    "one pixel": (1, 1),
    "flat": (300, 20),
    "tall": (20, 300),
    "large": (500, 400),
    "very long": (1500, 4),
}
REFUSED = {
    "one pixel": {"mistral3": "cannot read one of less than 2 tokens"},
    "very long": {
        **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "aspect ratio must be smaller"),
        **dict.fromkeys(("pixtral", "mistral3"), "less than a pixel of its short side is left; "),
    },
}
"""Pictures that a family does not take, and why."""


class Built(NamedTuple):
    """A tiny model, and what encodes and collates for it."""

    model: Any
    family: Family
    encoder: Encoder
    collate: Collator
    format: Messages
    opener: ImageOpener


@pytest.fixture(scope="module", params=[*VISION_FAMILIES, *MORE_FAMILIES])
def built(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> Built:
    folder = tiny_model(request.param)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    family, format = family_of(model.config), Messages(image_columns=("images",))
    opener = ImageOpener(root=None)
    collate = Collator(processor, family, format, opener)
    return Built(model, family, Encoder(processor, family), collate, format, opener)


def row(*sizes: tuple[int, int]) -> dict[str, Any]:
    """A question about pictures of these sizes, with an answer."""
    images = []
    for size in sizes:
        content = BytesIO()
        Image.effect_noise(size, 40).convert("RGB").save(content, "PNG")
        images.append({"path": None, "bytes": content.getvalue()})
    parts = [*({"type": "image"} for _ in sizes), {"type": "text", "text": "What is it?"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Two red squares."}]}
    return {"messages": [{"role": "user", "content": parts}, answer], "images": images}


def encoded(built: Built, *sizes: tuple[int, int]) -> dict[str, Any]:
    raw = row(*sizes)
    sample = built.format.sample(raw)
    found = built.encoder.encode(sample, [built.opener.size(i) for i in sample["images"]])
    return {**raw, "input_ids": found.input_ids, "labels": found.labels}


@pytest.mark.parametrize("shape", SIZES)
def test_picture_of_any_shape_reaches_the_model_or_is_refused(built: Built, shape: str) -> None:
    reason = REFUSED.get(shape, {}).get(built.family.name)
    if reason:
        with pytest.raises(DataError, match=reason):
            encoded(built, SIZES[shape])
        return
    sample = encoded(built, SIZES[shape])

    batch = built.collate([sample])  # which compares the tokens counted ahead with the pixels'

    assert built.model(**batch).loss.isfinite()
    assert built.opener.size(built.format.images(sample)[0]) == SIZES[shape]


def test_rows_of_several_and_of_no_pictures_share_a_batch(built: Built) -> None:
    rows = [encoded(built, SIZES["small"]), encoded(built, SIZES["small"], SIZES["large"])]
    if built.family.needs_images:
        with pytest.raises(DataError, match="takes no text without one"):
            encoded(built)
    elif not built.family.cross_attention:  # text and pictures mixed: one process only
        rows.append(encoded(built))

    loss = built.model(**built.collate(rows)).loss
    loss.backward()

    assert loss.isfinite()
    assert any(p.grad is not None and p.grad.any() for p in built.model.parameters())
    built.model.zero_grad()


def test_trained_are_the_words_of_the_answer_and_its_end_alone(built: Built) -> None:
    sample = encoded(built, SIZES["small"])
    tokenizer = getattr(built.encoder.processor, "tokenizer", built.encoder.processor)
    trained = [i for i, label in enumerate(sample["labels"]) if label != UNTRAINED]

    text = tokenizer.decode([sample["input_ids"][index] for index in trained])

    assert text.strip().startswith("Two red squares.")
    ending = text.strip().removeprefix("Two red squares.").strip()
    assert ending in tokenizer.get_added_vocab()
    media = built.family.untrained_token_ids(built.encoder.processor)
    assert not media & {sample["labels"][index] for index in trained}


@pytest.mark.parametrize("built", ["qwen2_vl", "molmo2"], indirect=True)
def test_prompt_is_that_of_the_processor_to_the_token(built: Built) -> None:
    """What is encoded for training is what the processor makes of the same words when asked."""
    sample = encoded(built, SIZES["small"])
    picture = Image.open(BytesIO(sample["images"][0]["bytes"]))
    text = built.encoder.template.render(built.format.sample(sample)["messages"])

    asked = built.encoder.processor(text=text, images=[picture], return_tensors="pt")

    assert asked["input_ids"][0].tolist() == sample["input_ids"]
