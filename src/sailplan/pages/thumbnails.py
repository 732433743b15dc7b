"""Small copies of images, to be looked at beside their text."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from sailplan.files import write_atomically

if TYPE_CHECKING:
    from PIL import Image

LONGEST_SIDE = 480
"""In pixels: sharp at the width it has on a dense screen."""


def as_webp(image: Image.Image) -> bytes:
    """Returns a small copy of an image, encoded."""
    small = image.convert("RGB")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=85)
    return buffer.getvalue()


def keep(image: Image.Image, folder: Path) -> str:
    """Writes a small copy of an image into a folder, and returns its name, made from its bytes.

    Raises:
        OSError: It cannot be written.
    """
    content = as_webp(image)
    name = f"{xxhash.xxh3_64_hexdigest(content)}.webp"
    if not (folder / name).is_file():
        write_atomically(folder / name, content)
    return name
