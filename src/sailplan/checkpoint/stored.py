"""A tensor as bytes of a file: what it is and where it lies, without its values."""

from __future__ import annotations

import math
from dataclasses import dataclass
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

    @property
    def span(self) -> int:
        """The elements from its first to behind its last in memory."""
        if self.numel == 0:
            return 0
        steps = zip(self.shape, self.stride, strict=True)
        return 1 + sum((size - 1) * stride for size, stride in steps)
