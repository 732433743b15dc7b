"""Pixels as tensors: those of Pillow to the last bit, and Pillow's word on what is broken."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from sailplan.data import pixels
from sailplan.data.images import ImageOpener
from sailplan.data.sample import ImageReference
from sailplan.errors import DataError
from tests.support.pictures import PICTURES, encoded, noise

OPENER = ImageOpener(root=None)


def embedded(data: bytes) -> ImageReference:
    return ImageReference(path="shop/a.img", bytes=data)


def seen(look: Callable[[ImageReference], torch.Tensor | Image.Image], data: bytes) -> str | bytes:
    """What one of the two ways to pixels makes of a file: its pixels, or its error's words."""
    try:
        found = look(embedded(data))
    except DataError as error:
        return str(error)
    image = found if isinstance(found, Image.Image) else pixels.as_image(found)
    return f"{image.mode} {image.size}".encode() + image.tobytes()


@pytest.mark.parametrize("name", PICTURES)
def test_decode_of_every_kind_gives_the_pixels_of_open(name: str) -> None:
    data = PICTURES[name]

    found = OPENER.decode(embedded(data)) if "no_end" not in name else None

    assert found is None or (found.dtype, found.shape[0]) == (torch.uint8, 3)
    assert seen(OPENER.decode, data) == seen(OPENER.open, data)


@pytest.mark.parametrize(
    ("name", "is_decoded"),
    [
        ("jpeg_61x37_420", True),
        ("jpeg_61x37_progressive", True),
        ("jpeg_grey", True),
        ("jpeg_turned_6", True),
        ("mpo", True),
        ("webp", True),
        ("webp_turned_8", True),
        ("jpeg_cmyk", False),
        ("webp_alpha_half", False),
        ("webp_animated", False),
        ("png", False),
    ],
)
def test_plain_jpeg_and_webp_alone_are_decoded_by_torchvision(name: str, is_decoded: bool) -> None:
    with Image.open(io.BytesIO(PICTURES[name])) as image:
        assert (pixels.decoded(image) is not None) == is_decoded


@pytest.mark.parametrize(
    "name", ["jpeg_61x37_420", "jpeg_61x37_progressive", "jpeg_grey", "mpo", "webp", "png"]
)
def test_decode_of_damaged_image_says_and_shows_what_open_does(name: str) -> None:
    whole, chance = PICTURES[name], np.random.default_rng(0)

    damaged = [whole[: len(whole) * kept // 40] for kept in range(40)]
    damaged += [cut + b"\xff\xd9" for cut in damaged]
    for _ in range(150):
        data = bytearray(whole)
        for place in chance.integers(2, len(data), chance.integers(1, 5)):
            data[place] = chance.integers(0, 256)
        start = int(chance.integers(2, len(whole)))
        damaged += [bytes(data), whole[:start] + whole[start + chance.integers(1, 40) :]]

    outcomes = [(seen(OPENER.decode, data), seen(OPENER.open, data)) for data in damaged]
    assert all(ours == theirs for ours, theirs in outcomes)
    assert any(isinstance(ours, str) and "corrupt or cut off" in ours for ours, _ in outcomes)


@pytest.fixture
def another_codec(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A torchvision whose JPEG codec rounds otherwise, as IJG's does."""
    own = torchvision.io.decode_jpeg
    monkeypatch.setattr(torchvision.io, "decode_jpeg", lambda *a, **k: own(*a, **k) | 1)
    pixels._agrees.cache_clear()
    yield
    pixels._agrees.cache_clear()


@pytest.mark.usefixtures("another_codec")
def test_decode_where_codecs_disagree_is_left_to_pillow() -> None:
    data = encoded(noise(), "JPEG")

    assert seen(OPENER.decode, data) == seen(OPENER.open, data)


def test_pixels_survive_the_way_to_an_image_and_back() -> None:
    image = noise(5, 9)

    found = pixels.of_image(image)

    assert found.shape == (3, 9, 5)
    assert pixels.as_image(found).tobytes() == image.tobytes()
