"""Turns any Pillow image into RGB without surprises."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sailplan.errors import DataError

_SIXTEEN_BIT_MAXIMUM = 65535


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns a loaded image in RGB.

    Transparent parts lie on white, as a page would show them. Pillow's own `convert` clips 16-bit
    grey at 255, which makes nearly every pixel white: it is scaled instead.

    Raises:
        DataError: Its pixels have no agreed range (floats, 32-bit integers).
    """
    if image.mode.startswith("I"):
        image = _eight_bit(image)
    if image.mode == "F":
        raise DataError("its pixels are floats", todo="save it with 8 or 16 bits a channel")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        page = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(page, opaque).convert("RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > _SIXTEEN_BIT_MAXIMUM):
        raise DataError("its pixels have 32 bits", todo="save it with 8 or 16 bits a channel")
    scaled = (values * 255 + _SIXTEEN_BIT_MAXIMUM // 2) // _SIXTEEN_BIT_MAXIMUM
    return Image.fromarray(scaled.astype(np.uint8))
