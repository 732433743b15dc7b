"""Pictures inside a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from sailplan.files import write_atomically

if TYPE_CHECKING:
    from PIL import Image

LONGEST = 480
"""Longest side in pixels of a shown picture: sharp at the width it has on a dense screen."""


def thumbnail(image: Image.Image, *, longest: int = LONGEST, quality: int = 85) -> bytes:
    """Returns an image as WebP, small enough to be looked at beside its text.

    Args:
        image: Of any size and mode; it stays as it is.
        longest: The most pixels of a side.
        quality: WebP's, of 100.
    """
    # Shrunk first where that is the same: a picture of 8,000 pixels has 200 MB.
    small = image if image.mode in ("L", "RGB") else image.convert("RGB")
    scale = longest / max(small.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in small.size)
        small = small.resize((width, height), reducing_gap=2.0)
    buffer = io.BytesIO()
    small.convert("RGB").save(buffer, format="WEBP", quality=quality)
    return buffer.getvalue()


def data_url(webp: bytes) -> str:
    """Returns a WebP picture as the address that holds it."""
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def keep(image: Image.Image, folder: Path) -> str:
    """Writes a small copy of an image into a folder, and returns its name, made from its bytes.

    Raises:
        OSError: It cannot be written.
    """
    content = thumbnail(image)
    name = f"{xxhash.xxh3_64_hexdigest(content)}.webp"
    if not (folder / name).is_file():
        write_atomically(folder / name, content)
    return name
