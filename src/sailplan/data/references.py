"""From the values of image columns to image references, without touching a file."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

from sailplan.data.sample import ImageReference
from sailplan.errors import DataError

PART_KEYS = ("image", "path", "url", "image_url", "base64")
"""The keys under which an image part of a message may carry its own image."""


def references(value: object) -> list[ImageReference]:
    """Returns the references that one value of an image column stands for, in order.

    A path or URL, a data URL, encoded bytes, the storage of `datasets.Image` (`path` and `bytes`),
    OpenAI's `{"url": …}`, or a list of these; `None` and the empty string stand for no image.

    Raises:
        DataError: The value is something else, such as an array of pixels.
    """
    if value is None or value == "":
        return []
    if isinstance(value, str):
        if value[:5].lower() == "data:":
            return [ImageReference(path=None, bytes=_data_url(value))]
        return [ImageReference(path=value, bytes=None)]
    if isinstance(value, bytes):
        return [ImageReference(path=None, bytes=value)]
    if isinstance(value, list | tuple):
        return [reference for item in value for reference in references(item)]
    if isinstance(value, Mapping) and (value.get("path") or value.get("bytes")):
        return [ImageReference(path=value.get("path"), bytes=value.get("bytes"))]
    if isinstance(value, Mapping) and isinstance(value.get("url"), str):
        return references(value["url"])
    if isinstance(value, Mapping) and not any(value.values()):  # a structure that Arrow filled
        return []
    raise DataError(
        f"an image column holds a {type(value).__name__}",
        allowed="a path, the bytes of an image file, {path, bytes}, {url}, or a list of these",
    )


def from_base64(text: str) -> ImageReference:
    """Returns the reference of an image that is written in base64.

    Raises:
        DataError: It is not.
    """
    try:
        return ImageReference(path=None, bytes=base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise DataError(f"an image in base64 is broken: {error}", todo="encode it again") from None


def _data_url(url: str) -> bytes | None:
    """Returns the bytes in a data URL (RFC 2397): `data:image/png;base64,…`."""
    head, comma, body = url.partition(",")
    kind, *flags = head[5:].lower().split(";")
    if not comma or "base64" not in flags or not (kind.startswith("image/") or not kind):
        raise DataError(
            f"an image is given by the data URL {head[:60]}", allowed="data:image/…;base64,…"
        )
    return from_base64(body)["bytes"]


def column_references(row: Mapping[str, Any], columns: Iterable[str]) -> list[ImageReference]:
    """Returns the images of a row, column after column."""
    return [reference for column in columns for reference in references(row.get(column))]
