"""From the values of image columns to image references, without touching a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sailplan.data.sample import ImageReference
from sailplan.errors import DataError

PART_KEYS = ("image", "path", "url")
"""The keys under which an image part of a message may carry its own image."""


def references(value: object) -> list[ImageReference]:
    """Returns the references that one value of an image column stands for, in order.

    A path or URL, encoded bytes, the storage of `datasets.Image` (`path` and `bytes`), or a list
    of these; `None` and the empty string stand for no image.

    Raises:
        DataError: The value is something else, such as an array of pixels.
    """
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [ImageReference(path=value, bytes=None)]
    if isinstance(value, bytes):
        return [ImageReference(path=None, bytes=value)]
    if isinstance(value, list | tuple):
        return [reference for item in value for reference in references(item)]
    if isinstance(value, Mapping) and (value.get("path") or value.get("bytes")):
        return [ImageReference(path=value.get("path"), bytes=value.get("bytes"))]
    raise DataError(
        f"an image column holds a {type(value).__name__}",
        allowed="a path, the bytes of an image file, {path, bytes}, or a list of these",
    )


def column_references(row: Mapping[str, Any], columns: Iterable[str]) -> list[ImageReference]:
    """Returns the images of a row, column after column."""
    return [reference for column in columns for reference in references(row.get(column))]
