"""Every family's pixel values from tensors, against the processor's own from Pillow's images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from sailplan.data import pixels
from sailplan.data.media import process_images
from sailplan.model.families import family_of
from tests.support.tiny import MORE_FAMILIES, VISION_FAMILIES, build_processor

BATCHES = [
    [[(1, 1)], [(3, 3)], [(1, 3)], [(4, 1)]],
    [[(3, 200)], [(150, 1), (300, 4)]],
    [[(56, 56), (31, 97)], [(640, 480)], [(56, 56)]],
    [[(1000, 300), (28, 28), (333, 501)]],
]


def picture(size: tuple[int, int]) -> Image.Image:
    width, height = size
    noise = np.random.default_rng(sum(size))
    return Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))


def own(processor: Any, batch: list[list[Image.Image]], *, nested: bool) -> Any:
    """What the processor's own image part makes of Pillow's images, or why it does not."""
    merged = processor._merge_kwargs(
        tokenizer_init_kwargs=processor.tokenizer.init_kwargs, return_tensors="pt"
    )
    flat = [image for sample in batch for image in sample]
    try:
        return processor._process_images(batch if nested else flat, **merged["images_kwargs"])
    except ValueError as error:
        return str(error)


def assert_same(ours: Any, its: Any) -> None:
    if isinstance(its, torch.Tensor):
        assert ours.dtype == its.dtype
        assert torch.equal(ours, its)
    elif isinstance(its, list):
        assert len(ours) == len(its)
        for one, other in zip(ours, its, strict=True):
            assert_same(one, other)
    else:
        assert ours == its


@pytest.fixture(scope="module", params=[*VISION_FAMILIES, *MORE_FAMILIES])
def family(request: pytest.FixtureRequest) -> tuple[Any, bool]:
    config, processor = build_processor(request.param)
    return processor, family_of(config).nested_images


@pytest.mark.parametrize("sizes", BATCHES, ids=str)
def test_pixel_values_from_tensors_equal_those_from_images(
    family: tuple[Any, bool], sizes: list[list[tuple[int, int]]]
) -> None:
    processor, nested = family
    images = [[picture(size) for size in sample] for sample in sizes]
    tensors = [[pixels.of_image(image) for image in sample] for sample in images]
    mixed = [[*tensors[0][:1], *images[0][1:]], *images[1:]]
    its = own(processor, images, nested=nested)

    for batch in (tensors, images, mixed):
        try:
            ours: Any = process_images(processor, batch, nested=nested)
        except ValueError as error:
            ours = str(error)
        if isinstance(its, str):
            assert ours == its
        else:
            assert ours[0].keys() == its[0].keys()
            for name in its[0]:
                assert_same(ours[0][name], its[0][name])
            assert ours[1] == its[1]


def test_pixel_values_of_a_processor_that_works_on_images_are_its_own() -> None:
    _, processor = build_processor("qwen2_vl")
    processor.image_processor = Qwen2VLImageProcessorPil(size=processor.image_processor.size)
    images = [[picture((3, 90))], [picture((61, 37))]]
    tensors = [[pixels.of_image(image) for image in sample] for sample in images]

    ours, texts = process_images(processor, tensors, nested=False)

    its, its_texts = own(processor, images, nested=False)
    assert torch.equal(ours["pixel_values"], torch.as_tensor(its["pixel_values"]))
    assert texts == its_texts
