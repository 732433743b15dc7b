"""A tensor as bytes of a file: what it is and where it lies, without its values."""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "complex64": 8,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""Bytes of one element, by torch's name of the dtype."""

_FORMATS = {"float32": "<f", "float64": "<d", "int64": "<q", "int32": "<i"}


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor in a file, row-major or strided, little-endian."""

    file: Path
    """The file."""
    offset: int
    """Where its first element begins, in bytes from the start of the file."""
    dtype: str
    """torch's name of its dtype, a key of `ITEM_BYTES`."""
    shape: tuple[int, ...]
    """Its shape."""
    stride: tuple[int, ...]
    """The elements between neighbours, by dimension."""

    @property
    def numel(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """The bytes of its elements."""
        return self.numel * ITEM_BYTES[self.dtype]

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie one after another, in row-major order."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size not in (0, 1) and stride != expected:
                return False
            expected *= size
        return True

    def pieces(self) -> Pieces:
        """Returns it as one piece.

        Raises:
            ValueError: Its elements do not lie one after another.
        """
        if not self.is_contiguous:
            raise ValueError(f"a tensor of shape {self.shape} lies in strides {self.stride}")
        return Pieces(shape=self.shape, segments=tuple(Row([self]).take(0, self.numel)))

    @property
    def span(self) -> int:
        """The elements from its first to behind its last in memory."""
        if self.numel == 0:
            return 0
        steps = zip(self.shape, self.stride, strict=True)
        return 1 + sum((size - 1) * stride for size, stride in steps)


def number(value: StoredTensor | float) -> float:
    """Returns the value of a number, or of the one element of a stored tensor, read from its file.

    Raises:
        ValueError: The tensor has another number of elements, or a dtype that counts nothing.
    """
    if not isinstance(value, StoredTensor):
        return value
    if value.numel != 1 or value.dtype not in _FORMATS:
        raise ValueError(f"a {value.dtype} tensor of shape {value.shape} is no number")
    with value.file.open("rb") as file:
        file.seek(value.offset)
        (found,) = struct.unpack(_FORMATS[value.dtype], file.read(value.num_bytes))
    return float(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Elements that lie one after another in a file."""

    file: Path
    """The file."""
    offset: int
    """Where the first of them begins, in bytes from the start of the file."""
    count: int
    """The number of them."""
    dtype: str
    """torch's name of their dtype, a key of `ITEM_BYTES`."""

    @property
    def num_bytes(self) -> int:
        """Their bytes."""
        return self.count * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """A tensor that lies in pieces: its elements in row-major order, segment after segment."""

    shape: tuple[int, ...]
    """The shape of the whole."""
    segments: tuple[Segment, ...]
    """Where its elements lie."""

    @property
    def numel(self) -> int:
        """The elements that its shape asks for."""
        return math.prod(self.shape)


def part_of(segments: Sequence[Segment], start: int, count: int) -> list[Segment]:
    """Returns the segments of `count` elements from `start` on of what lies in `segments`."""
    parts: list[Segment] = []
    for segment in segments:
        if count <= 0:
            break
        if start >= segment.count:
            start -= segment.count
            continue
        taken = min(segment.count - start, count)
        offset = segment.offset + start * ITEM_BYTES[segment.dtype]
        part = Segment(file=segment.file, offset=offset, count=taken, dtype=segment.dtype)
        parts.append(part)
        start, count = 0, count - taken
    return parts


class Row:
    """Flat tensors that are read as if they were one, such as a partition's groups.

    Args:
        tensors: The tensors, in order; each contiguous.
    """

    def __init__(self, tensors: Iterable[StoredTensor]) -> None:
        self._tensors = list(tensors)
        self._starts = list(accumulate((t.numel for t in self._tensors), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def take(self, start: int, count: int) -> list[Segment]:
        """Returns the segments of `count` elements from `start` on; fewer where the row ends."""
        segments: list[Segment] = []
        index = max(bisect_right(self._starts, start) - 1, 0)
        end = min(start + count, len(self))
        for tensor, first in zip(self._tensors[index:], self._starts[index:], strict=False):
            low, high = max(start, first), min(end, first + tensor.numel)
            if first >= end:
                break
            if low < high:
                offset = tensor.offset + (low - first) * ITEM_BYTES[tensor.dtype]
                part = Segment(
                    file=tensor.file, offset=offset, count=high - low, dtype=tensor.dtype
                )
                segments.append(part)
        return segments
