"""Qwen-VL's patches in the cheaper order, against the image processor's own call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CLIPImageProcessor, Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

from sailplan.data.patches import patches

BUDGET = {"shortest_edge": 56 * 56, "longest_edge": 200 * 200}
BATCHES = [
    [(28, 28)],
    [(1, 1), (3, 200), (200, 1)],
    [(37, 61), (61, 37), (37, 61)],
    [(500, 333), (56, 84), (1200, 90), (97, 640)],
]


def pictures(sizes: list[tuple[int, int]]) -> list[torch.Tensor]:
    """Noise as decoders leave it: the colours of a pixel side by side."""
    noise = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=noise).permute(
            2, 0, 1
        )
        for height, width in sizes
    ]


@pytest.mark.parametrize("sizes", BATCHES, ids=str)
@pytest.mark.parametrize(
    "settings",
    [{}, {"size": BUDGET}, {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}],
    ids=["published", "budget", "qwen3_vl"],
)
def test_patches_equal_the_processors_own_call(
    settings: dict[str, Any], sizes: list[tuple[int, int]]
) -> None:
    processor, images = Qwen2VLImageProcessor(**settings), pictures(sizes)

    found = patches(processor, images)

    own = processor(images, return_tensors="pt", input_data_format="channels_first")
    assert found is not None
    assert found.keys() == own.keys()
    for name, value in own.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
    assert found["pixel_values"].is_contiguous()


class _Brighter(Qwen2VLImageProcessor):
    def _preprocess(self, images: list[torch.Tensor], **settings: Any) -> Any:
        return super()._preprocess([image | 1 for image in images], **settings)


class _Foreign:
    """An image processor that came with a model."""


class _Sharper(Qwen2VLImageProcessor):
    def resize(self, images: torch.Tensor, *arguments: Any, **settings: Any) -> torch.Tensor:
        resized: torch.Tensor = super().resize(images, *arguments, **settings)
        return resized.flip(0) | 1


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessor(),
        Qwen2VLImageProcessorPil(),
        Qwen2VLImageProcessor(do_resize=False),
        Qwen2VLImageProcessor(do_normalize=False, do_rescale=False),
        _Brighter(),
        _Foreign(),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_patches_of_other_processors_are_left_to_them(processor: Any) -> None:
    assert patches(processor, pictures([(56, 56)])) is None


def test_patches_of_a_processor_that_resizes_otherwise_are_its_own() -> None:
    processor, images = _Sharper(), pictures([(56, 84)])

    found = patches(processor, images)

    assert found is not None
    assert torch.equal(found["pixel_values"], processor(images)["pixel_values"])


def test_patches_of_a_size_that_is_refused_raise_the_processors_words() -> None:
    with pytest.raises(ValueError, match="aspect ratio must be smaller than 200"):
        patches(Qwen2VLImageProcessor(), pictures([(56, 56), (2, 500)]))
