"""Reads and lays out safetensors files.

A file is the length of its header in eight bytes, the header in JSON, padded with blanks to eight
bytes, and the tensors without gaps. The library that goes by the same name can neither say where a
tensor lies nor write one piece by piece; the format is small enough to do both here.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sailplan.checkpoint.stored import ITEM_BYTES, StoredTensor
from sailplan.errors import CheckpointError

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""torch's name of each dtype that the format knows."""

_MAX_HEADER_BYTES = 100 * 1000 * 1000
"""The library refuses longer ones."""
_METADATA = "__metadata__"
_BROKEN = "the file is truncated or corrupt: get it again"


def read(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a file by name, from its header alone.

    Raises:
        CheckpointError: The file is missing, truncated, or no safetensors file.
    """
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size_bytes - 8):
                raise CheckpointError(f"{path} is no safetensors file, or cut off", todo=_BROKEN)
            header = json.loads(file.read(length))
        tensors = {
            name: _tensor(path, 8 + length, entry)
            for name, entry in header.items()
            if name != _METADATA
        }
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} has a broken header ({error})", todo=_BROKEN) from error
    _check_places(path, tensors, 8 + length, size_bytes)
    return tensors


def _tensor(path: Path, start: int, entry: Mapping[str, Any]) -> StoredTensor:
    shape = tuple(int(size) for size in entry["shape"])
    begin, end = entry["data_offsets"]
    tensor = StoredTensor(
        file=path,
        offset=start + int(begin),
        dtype=DTYPES[entry["dtype"]],
        shape=shape,
        stride=tuple(math.prod(shape[index + 1 :]) for index in range(len(shape))),
    )
    if min(shape, default=1) < 0 or int(end) - int(begin) != tensor.num_bytes:
        raise ValueError(f"a tensor of shape {shape} in {int(end) - int(begin)} bytes")
    return tensor


def _check_places(
    path: Path, tensors: Mapping[str, StoredTensor], start: int, size_bytes: int
) -> None:
    """The tensors fill the file, one behind another: a flipped byte of the header shows here."""
    position = start
    for name, tensor in sorted(
        tensors.items(), key=lambda item: (item[1].offset, item[1].num_bytes)
    ):
        if tensor.offset != position:
            raise CheckpointError(f"{path}: {name} does not begin where the one before it ends")
        position += tensor.num_bytes
    if position != size_bytes:
        raise CheckpointError(
            f"{path} has {size_bytes} bytes, its header tells of {position}", todo=_BROKEN
        )


def layout(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, int]]:
    """Returns the head of a file, and where each tensor begins in it, in bytes.

    The order is the library's own: wide dtypes first, then by name, so that every tensor is aligned
    and equal tensors make equal files.

    Args:
        tensors: dtype (torch's name) and shape by name.
    """
    names = {torch_name: name for name, torch_name in DTYPES.items()}
    order = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name][0]], name))
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}
    begins: dict[str, int] = {}
    position = 0
    for name in order:
        dtype, shape = tensors[name]
        begins[name] = position
        end = position + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {
            "dtype": names[dtype],
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    return head, {name: len(head) + begin for name, begin in begins.items()}


def index(shards: Iterable[tuple[str, Mapping[str, int]]]) -> bytes:
    """Returns the text of `model.safetensors.index.json`.

    Args:
        shards: Of each file its name, and the bytes of each of its tensors by name.
    """
    files = list(shards)
    weight_map = {name: file for file, tensors in files for name in tensors}
    total = sum(size for _, tensors in files for size in tensors.values())
    content = {
        "metadata": {"total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (json.dumps(content, indent=2) + "\n").encode()
