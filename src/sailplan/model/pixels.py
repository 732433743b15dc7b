"""The pixel budget: how large the model is shown its images.

It is set on the image processor once, where the processor is loaded. Everything that counts image
tokens or makes pixels asks that processor, so there is no second place to look.
"""

from __future__ import annotations

import math
from typing import Any

from sailplan.errors import RunFileError


def set_pixel_budget(processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> None:
    """Limits the area in pixels of what images are resized to.

    Image processors say it in different ways (transformers 5.23): those of Qwen2-VL's kind hold
    areas in `size` under `shortest_edge` and `longest_edge`; Pixtral's and Idefics' kind hold a
    longest side; the rest resize every image to one size.

    Args:
        processor: The model's processor, changed in place.
        min_pixels: Smallest area; None leaves the processor's own.
        max_pixels: Largest area; None leaves the processor's own.

    Raises:
        RunFileError: The limits contradict each other, or this processor has no such limit.
    """
    if min_pixels is None and max_pixels is None:
        return
    for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if value is not None and value <= 0:
            raise RunFileError(f"{name} {value}", allowed="1 or more")
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None:
        raise RunFileError(
            "min_pixels and max_pixels do nothing for a model without images", todo="remove them"
        )
    size: dict[str, Any] = dict(image_processor.size)
    if {"shortest_edge", "longest_edge"} <= size.keys():
        size["shortest_edge"] = min_pixels or min(size["shortest_edge"], max_pixels or math.inf)
        size["longest_edge"] = max_pixels or max(size["longest_edge"], size["shortest_edge"])
        if size["shortest_edge"] > size["longest_edge"]:
            raise RunFileError(
                f"min_pixels {size['shortest_edge']} is more than max_pixels {size['longest_edge']}"
            )
    elif "longest_edge" in size and min_pixels is None and max_pixels is not None:
        # A picture of no side longer than this has at most that area, whatever its shape.
        size["longest_edge"] = min(size["longest_edge"], math.isqrt(max_pixels))
    else:
        idle = "max_pixels" if min_pixels is None else "min_pixels"
        raise RunFileError(
            f"{idle} does nothing for {type(image_processor).__name__}, which resizes to "
            + " × ".join(f"{key} {value}" for key, value in size.items()),
            todo=f"remove {idle}",
        )
    image_processor.size = type(image_processor.size)(**size)
