"""The pictures of a report, each once, all of them together small enough for one file."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from PIL import Image

from sailplan.pages.pictures import LONGEST, data_url, thumbnail

MOST_BYTES = 2_800_000
"""Of all pictures together, before they are written as base64, which is a third longer."""

_SIZES = ((LONGEST, 85), (360, 78), (260, 70), (160, 60))
"""Longest side and quality, the next taken where all pictures together are too large."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture as it is put into the page."""

    number: int
    """By which the page knows it."""
    url: str
    """A data URL that holds it all."""
    width: int
    height: int
    """In pixels."""


def embedded(
    names: Iterable[str], read: Callable[[str], bytes | None]
) -> Mapping[str, Picture | None]:
    """Returns the pictures of these names; None for one that is not there or cannot be read.

    What is WebP already and small goes in as it is. Pictures that are alike are one.

    Args:
        names: Names of files, any of them more than once.
        read: Returns a file's content, None where it is not there.
    """
    files = {name: _thumbnail(read(name)) for name in dict.fromkeys(names)}
    for longest, quality in _SIZES[1:]:
        if sum(len(file) for file in set(files.values()) if file) <= MOST_BYTES:
            break
        files = {
            name: thumbnail(Image.open(io.BytesIO(file)), longest=longest, quality=quality)
            if file
            else None
            for name, file in files.items()
        }
    numbers = itertools.count()
    unique = {file: _picture(next(numbers), file) for file in files.values() if file}
    return {name: unique[file] if file else None for name, file in files.items()}


def _thumbnail(content: bytes | None) -> bytes | None:
    if not content:
        return None
    try:
        image = Image.open(io.BytesIO(content))
        if image.format == "WEBP" and max(image.size) <= LONGEST:
            image.load()
            return content
        return thumbnail(image)
    # What a file of another's making may raise: no image, a broken one, one that is a bomb.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _picture(number: int, webp: bytes) -> Picture:
    width, height = Image.open(io.BytesIO(webp)).size
    return Picture(number=number, url=data_url(webp), width=width, height=height)
