"""Qwen-VL's patches, from the image processor's own steps in a cheaper order.

Qwen2-VL's image processor, which later Qwen-VL models share, makes floats of whole images, cuts
them into patches, doubles these for the two frames of its temporal patch, and then joins those of
all images: every number is moved three times, in memory that is new each time. The same values come
of cutting bytes, and making floats of them where they shall lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

_PROVEN: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def patches(image_processor: Any, images: Sequence[torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Returns what the image processor makes of images, bit by bit, None where it must do so.

    Args:
        image_processor: Any; it is compared with its own call once.
        images: Bytes `[3, height, width]` each.

    Raises:
        ValueError: The image processor refuses an image of that size.
    """
    if image_processor not in _PROVEN:
        _PROVEN[image_processor] = _is_right(image_processor)
    return _patches(image_processor, images) if _PROVEN[image_processor] else None


def _patches(image_processor: Any, images: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    side, merged = image_processor.patch_size, image_processor.merge_size
    cut, grids = [], []
    for image in images:
        # Decoders leave the colours of a pixel side by side, and resizing is fastest on these; the
        # processor's own call takes them apart first.
        resized = image_processor.resize(
            image.unsqueeze(0),
            size=image_processor.size,
            resample=image_processor.resample,
            factor=side * merged,
        )
        of_image, rows, columns = image_processor.patchify(
            resized, patch_size=side, merge_size=merged, temporal_patch_size=1
        )
        cut.append(of_image.view(rows * columns, -1, side, side))
        grids.append([1, rows, columns])
    num_patches, frames = sum(map(len, cut)), image_processor.temporal_patch_size
    # NumPy asks for huge pages: as the first one to touch these, torch's own would take longer to
    # get them than to fill them.
    shape = (num_patches, cut[0].shape[1], frames, side, side)
    pixels = torch.from_numpy(np.empty(shape, dtype=np.float32))
    start = 0
    for of_image in cut:
        floats = image_processor.rescale_and_normalize(
            of_image,
            image_processor.do_rescale,
            image_processor.rescale_factor,
            image_processor.do_normalize,
            image_processor.image_mean,
            image_processor.image_std,
        )
        pixels[start : start + len(of_image)] = floats.unsqueeze(2)
        start += len(of_image)
    return {"pixel_values": pixels.flatten(1), "image_grid_thw": torch.tensor(grids)}


def _is_right(image_processor: Any) -> bool:
    from transformers import Qwen2VLImageProcessor

    if getattr(type(image_processor), "_preprocess", None) is not Qwen2VLImageProcessor._preprocess:
        return False
    noise = torch.Generator().manual_seed(0)
    probes = [
        torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=noise)
        for height, width in ((97, 140), (28, 31))
    ]
    try:
        ours, its = _patches(image_processor, probes), image_processor(probes, return_tensors="pt")
    except Exception:  # its settings are others than those that this order knows
        return False
    return ours.keys() == its.keys() and all(
        ours[name].dtype == its[name].dtype and torch.equal(ours[name], its[name]) for name in ours
    )
