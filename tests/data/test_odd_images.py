"""Pictures of odd sizes and kinds, none to eight a sample, through every family that sees images.

The peer is the model's own processor, called with the text and with what Pillow opens: what was
counted from the pictures' headers and what the collator makes of their bytes must be the same.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps

from sailplan.data.images import ImageOpener
from sailplan.data.media import ImageExpander
from sailplan.data.prefix import split
from sailplan.errors import DataError
from sailplan.model.families import family_of, tokenizer_of
from tests.support.packed import FORMAT, Setting
from tests.support.pictures import encoded, noise
from tests.support.tiny import MORE_FAMILIES, VISION_FAMILIES, build_processor

OPENER = ImageOpener(root=None)

SIZES = {"one pixel": (1, 1), "few pixels": (2, 3), "upright": (1, 4000), "lying": (4000, 1)}
_TOO_SMALL = {"mistral3": "cannot read one of less than 2 tokens"}
_TOO_LONG = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "aspect ratio must be smaller"),
    **dict.fromkeys(("pixtral", "mistral3"), "less than a pixel of its short side is left; "),
}
REFUSED = dict(zip(SIZES, (_TOO_SMALL, _TOO_SMALL, _TOO_LONG, _TOO_LONG), strict=True))
"""Sizes that a family does not take, and why."""

WITHOUT_PICTURES_REFUSED = ("paligemma",)
"""Families that no row can be trained for that has no picture."""


def _turned(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(noise(90, 40), kind, exif=exif)


def _frames(kind: str, *others: Image.Image, **options: Any) -> bytes:
    return encoded(noise(90, 40), kind, save_all=True, append_images=[*others], **options)


KINDS: dict[str, Callable[[], bytes]] = {
    "gif": lambda: _frames("GIF", noise(90, 40).rotate(180)),
    "webp": lambda: _frames("WEBP", noise(90, 40).rotate(180), lossless=True),
    "apng": lambda: _frames("PNG", noise(90, 40).rotate(180)),
    "tiff": lambda: _frames("TIFF", noise(30, 70), noise(1, 1)),
    "mpo": lambda: _frames("MPO", noise(30, 70)),
    **{f"jpeg turned {n}": lambda n=n: _turned("JPEG", n) for n in (3, 5, 6, 7, 8)},
    "png turned": lambda: _turned("PNG", 6),
    "webp turned": lambda: _turned("WEBP", 8),
}
"""Animations, files of several pictures, and pictures that are stored lying on their side."""


@pytest.fixture(scope="module", params=[*VISION_FAMILIES, *MORE_FAMILIES])
def subject(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> Setting:
    return Setting.load(tiny_model(request.param))


def row(subject: Setting, pictures: Sequence[bytes]) -> dict[str, Any]:
    """A question about the pictures with an answer, encoded from the pictures' headers."""
    images = [{"path": None, "bytes": data} for data in pictures]
    parts = [*({"type": "image"} for _ in images), {"type": "text", "text": "What is it?"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Two red squares."}]}
    raw = {"messages": [{"role": "user", "content": parts}, answer], "images": images}
    sample = FORMAT.sample(raw)
    found = subject.encoder.encode(sample, [OPENER.size(image) for image in sample["images"]])
    own = {"input_ids": found.input_ids, "labels": found.labels}
    return {**raw, **own, "image_tokens": found.image_tokens}


def own_call(subject: Setting, row: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What the processor makes of the same words and of the pictures as Pillow opens them."""
    processor = subject.encoder.processor
    marked = subject.encoder.mark(FORMAT.sample(row))
    text, answer = marked.text, {}
    if subject.family.prefix_lm:  # the processor puts EOS behind an answer itself
        text, said = split(marked)
        answer = {"suffix": [said.removesuffix(tokenizer_of(processor).eos_token)]}
    bos = tokenizer_of(processor).bos_token
    opened = [Image.open(io.BytesIO(image["bytes"])) for image in row["images"]]
    upright: Any = [ImageOps.exif_transpose(image).convert("RGB") for image in opened]
    images = {"images": [upright] if subject.family.nested_images else upright} if upright else {}
    special = not (bos and text.startswith(bos))
    options = {"return_tensors": "pt", "add_special_tokens": special}
    return dict(processor(text=[text], **images, **answer, **options))


def assert_as_the_processor_has_it(subject: Setting, row: dict[str, Any]) -> None:
    ids = row["input_ids"]
    batch = subject.collate(packs=False)([row])
    own = own_call(subject, row)
    whole = own.pop("input_ids")
    assert whole[0, : len(ids)].tolist() == ids
    assert row["image_tokens"] == int((whole == subject.model.config.image_token_id).sum())
    assert bool(row["image_tokens"]) == bool(row["images"])
    eos = tokenizer_of(subject.encoder.processor).eos_token_id
    assert whole[0, len(ids) :].tolist() in ([], [eos])  # some processors end every text
    of_images = {name: value for name, value in own.items() if value.shape != whole.shape}
    assert bool(of_images) == bool(row["images"])
    for name, value in of_images.items():
        if name in batch:  # what is there for counting tokens only is no input of the model
            ours = batch[name]
            if name == "cross_attention_mask":
                value = value[:, : ours.shape[1]]
            assert torch.equal(ours, value), name
    with torch.no_grad():
        assert subject.model(**batch).loss.isfinite()


@pytest.mark.parametrize("shape", SIZES)
def test_picture_of_odd_size_is_what_the_processor_makes_of_it_or_refused(
    subject: Setting, shape: str
) -> None:
    picture = encoded(noise(*SIZES[shape]), "PNG")
    reason = REFUSED[shape].get(subject.family.name)
    if reason:
        with pytest.raises(DataError, match=reason) as caught:
            row(subject, [picture])
        assert caught.value.kind == "image-size"
        assert "\n" not in str(caught.value)
        return

    assert_as_the_processor_has_it(subject, row(subject, [picture]))


def test_strip_that_would_be_scaled_to_gigabytes_is_refused_from_its_size() -> None:
    config, processor = build_processor("llava")
    processor.image_processor.size = {"shortest_edge": 336}  # as it is published
    expander = ImageExpander(processor, family_of(config))

    for size in ((1, 4000), (4000, 1), (3, 65_000)):
        with pytest.raises(DataError, match=r"more than 134,217,728 in all") as caught:
            expander.replacement(size)
        assert caught.value.kind == "image-size"
    assert expander.replacement((4, 400)).count(processor.image_token) == 16


def test_picture_of_every_kind_is_its_first_frame_upright(subject: Setting) -> None:
    for make in KINDS.values():
        assert_as_the_processor_has_it(subject, row(subject, [make()]))


def test_none_to_eight_pictures_are_what_the_processor_makes_of_them(subject: Setting) -> None:
    pictures = [encoded(noise(40 + 7 * n, 75 - 6 * n), "PNG") for n in range(8)]
    rows = []
    for count in range(9):
        if not count and subject.family.name in WITHOUT_PICTURES_REFUSED:
            with pytest.raises(DataError):
                row(subject, [])
            continue
        rows.append(row(subject, pictures[:count]))
        assert_as_the_processor_has_it(subject, rows[-1])

    with torch.no_grad():
        padded = subject.model(**subject.collate(packs=False)(rows)).loss
        assert padded.isfinite()
        if subject.family.packing_obstacle is None:
            packed = subject.model(**subject.collate(packs=True)(rows), use_cache=False).loss
            torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)


IN_CI = ("qwen2_vl", "gemma3")
"""Families of which a picture of 64 million pixels is tried every time: seconds of each."""


@pytest.fixture(scope="session")
def huge() -> bytes:
    """A picture of 64 million pixels, of which a tenth of a megabyte is stored."""
    ramp = Image.linear_gradient("L").resize((8000, 8000))
    return encoded(Image.merge("RGB", [ramp, ramp.rotate(90), ramp]), "JPEG")


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(family, marks=() if family in IN_CI else pytest.mark.slow)
        for family in (*VISION_FAMILIES, *MORE_FAMILIES)
    ],
    indirect=True,
)
def test_picture_of_64_million_pixels_is_what_the_processor_makes_of_it(
    subject: Setting, huge: bytes
) -> None:
    assert_as_the_processor_has_it(subject, row(subject, [huge]))
