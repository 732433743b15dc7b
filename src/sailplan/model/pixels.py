"""The pixel budget: how large the model is shown its images.

It is set on the image processor once, where the processor is loaded. Everything that counts image
tokens or makes pixels asks that processor, so there is no second place to look; LLaVA-NeXT's kind
alone reads its grids in the model's config too, where `within_budget` sets them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sailplan.errors import RunFileError


def set_pixel_budget(processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> None:
    """Limits the area in pixels of what images are resized to.

    Image processors say it in different ways (transformers 5.23). Those of Qwen2-VL's kind hold
    areas in `size`, Pixtral's a longest side. Others cut an image into tiles, of which the budget
    bounds the number: LLaVA-NeXT's and LLaVA-OneVision's by their grids, InternVL's by
    `max_patches`, Molmo2's by `max_crops`, Idefics3's and SmolVLM's by the longest side; an
    overview of one tile comes on top. The rest resize every image to one size. A strip that Qwen's
    would make thinner than one token is one token high all the same, and may exceed the budget.

    Args:
        processor: The model's processor, changed in place.
        min_pixels: Smallest area; None leaves the processor's own.
        max_pixels: Largest area; None leaves the processor's own.

    Raises:
        RunFileError: The limits contradict each other, this processor has no such limit, or not
            even one tile is within it.
    """
    if min_pixels is None and max_pixels is None:
        return
    for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if value is not None and value <= 0:
            raise RunFileError(f"{name} {value}", allowed="1 or more")
    images = getattr(processor, "image_processor", None)
    if images is None:
        raise RunFileError(
            "min_pixels and max_pixels do nothing for a model without images", todo="remove them"
        )
    size: dict[str, Any] = dict(images.size)
    if {"shortest_edge", "longest_edge"} <= size.keys():
        _set_areas(images, size, min_pixels, max_pixels)
    elif min_pixels is not None or max_pixels is None:
        raise _idle("min_pixels", images, size)
    elif getattr(images, "image_grid_pinpoints", None):
        images.image_grid_pinpoints = within_budget(images.image_grid_pinpoints, max_pixels)
    elif hasattr(images, "max_patches"):
        images.max_patches = min(images.max_patches, _tiles(size, max_pixels))
        images.min_patches = min(images.min_patches, images.max_patches)
    elif hasattr(images, "max_crops"):
        images.max_crops = min(images.max_crops, _tiles(size, max_pixels))
    elif "longest_edge" in size:
        # A picture of no side longer than this has at most that area, whatever its shape.
        step = _step(processor, images)
        side = math.isqrt(max_pixels) // step * step
        if side == 0:
            raise _too_small(max_pixels, step * step)
        _set_size(images, size | {"longest_edge": min(size["longest_edge"], side)})
    else:
        raise _idle("max_pixels", images, size)


def within_budget(grids: Sequence[Sequence[int]], max_pixels: int | None) -> list[list[int]]:
    """Returns the grids (height and width in pixels) whose area is within the budget.

    Raises:
        RunFileError: None is.
    """
    kept = [list(grid) for grid in grids if max_pixels is None or math.prod(grid) <= max_pixels]
    if not kept:
        raise _too_small(max_pixels, min(map(math.prod, grids)))
    return kept


def _set_areas(
    images: Any, size: dict[str, Any], min_pixels: int | None, max_pixels: int | None
) -> None:
    shortest = min_pixels or size["shortest_edge"]
    if min_pixels is None and max_pixels is not None and max_pixels < shortest:
        token = int(getattr(images, "patch_size", 1)) * int(getattr(images, "merge_size", 1))
        shortest = (math.isqrt(max_pixels) // token * token) ** 2  # else rounded up, past the limit
        if not shortest:
            raise _too_small(max_pixels, token * token)
    longest = max_pixels or max(size["longest_edge"], shortest)
    if shortest > longest:
        raise RunFileError(f"min_pixels {shortest} is more than max_pixels {longest}")
    _set_size(images, size | {"shortest_edge": shortest, "longest_edge": longest})


def _set_size(images: Any, size: dict[str, Any]) -> None:
    images.size = type(images.size)(**size)


def _tiles(size: dict[str, Any], max_pixels: int) -> int:
    """Returns how many tiles of that size are within the budget."""
    tile = int(size["height"]) * int(size["width"])
    if max_pixels < tile:
        raise _too_small(max_pixels, tile)
    return max_pixels // tile


def _step(processor: Any, images: Any) -> int:
    """Returns what sides are rounded up to: tiles, or the patches that become one token."""
    tile = getattr(images, "max_image_size", None)
    if tile and getattr(images, "do_image_splitting", True):
        return int(tile["longest_edge"])
    patch = getattr(images, "patch_size", 1)
    side = patch if isinstance(patch, int) else max(patch["height"], patch["width"])
    return int(side) * int(getattr(processor, "spatial_merge_size", None) or 1)


def _too_small(max_pixels: int | None, least: int) -> RunFileError:
    return RunFileError(f"max_pixels {max_pixels}", allowed=f"{least} or more: one tile")


def _idle(name: str, images: Any, size: dict[str, Any]) -> RunFileError:
    how = " × ".join(f"{key} {value}" for key, value in size.items())
    return RunFileError(
        f"{name} does nothing for {type(images).__name__}, which resizes to {how}",
        todo=f"remove {name}",
    )
