"""An image's pixels as a tensor, decoded by torchvision where that gives what Pillow gives.

torchvision decodes straight into the tensor that image processors work on; Pillow's way there is
two copies longer. Both carry their own codecs, so where the two do not agree, Pillow decides.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import torch
from PIL import Image

_KINDS = ("JPEG", "WEBP")
"""What torchvision decodes. PNG is not among it: torchvision 0.29 crashes on some broken ones."""

_MODES = ("RGB", "L")
"""The Pillow modes without transparency, palette or profile-bound colours."""

_FLIPPED = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""The dimensions that an EXIF orientation mirrors, after it swapped height and width."""


def decoded(image: Image.Image) -> torch.Tensor | None:
    """Returns the pixels of an image, as they are stored, without Pillow.

    Args:
        image: An image of which Pillow has read the header, and nothing else yet.

    Returns:
        Bytes `[3, height, width]`, or None where only Pillow reads it, or says what is wrong.
    """
    kind = "JPEG" if image.format == "MPO" else image.format or ""  # a JPEG with others behind it
    if kind not in _KINDS or image.mode not in _MODES or not _agrees(kind):
        return None
    file = image.fp  # type: ignore[attr-defined]  # its file, which has one as long as it is open
    file.seek(0)
    pixels = _decode(kind, file.read())
    return pixels if pixels is not None and pixels.shape == (3, *image.size[::-1]) else None


def of_image(image: Image.Image) -> torch.Tensor:
    """Returns the bytes `[3, height, width]` of a Pillow image in RGB."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def as_image(pixels: torch.Tensor) -> Image.Image:
    """Returns the Pillow image of bytes `[3, height, width]`."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def turned(pixels: torch.Tensor, orientation: int) -> torch.Tensor:
    """Returns pixels `[3, height, width]` upright that are stored in an EXIF orientation."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 2)
    flipped = _FLIPPED.get(orientation)
    return pixels if flipped is None else pixels.flip(flipped)


def _decode(kind: str, data: bytes) -> torch.Tensor | None:
    # Here, since it takes 2 s to import, and showing images or asking for sizes needs none of it.
    from torchvision.io import ImageReadMode, decode_jpeg, decode_webp

    decode = decode_jpeg if kind == "JPEG" else decode_webp
    try:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels: torch.Tensor = decode(encoded, mode=ImageReadMode.RGB)
        return pixels
    except RuntimeError:  # cut off, corrupt, animated, or torchvision was built without the codec
        return None


@cache
def _agrees(kind: str) -> bool:
    """Tells whether both decode to the same bytes here: codecs differ from build to build."""
    noise = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    pixels = _decode(kind, buffer.getvalue())
    with Image.open(buffer, formats=[kind]) as image:
        return pixels is not None and torch.equal(pixels, of_image(image.convert("RGB")))
