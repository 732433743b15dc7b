"""Reads tensors from the places where they are said to lie, with nothing but offset and shape."""

from __future__ import annotations

import torch

from sailplan.checkpoint.stored import ITEM_BYTES, Pieces, StoredTensor


def values(tensor: StoredTensor) -> torch.Tensor:
    """Returns a stored tensor's values."""
    return _flat(tensor, tensor.span).as_strided(tensor.shape, tensor.stride)


def joined(pieces: Pieces) -> torch.Tensor:
    """Returns the values of a tensor that lies in pieces."""
    return torch.cat([_flat(segment, segment.count) for segment in pieces.segments]).view(
        pieces.shape
    )


def _flat(part, count: int) -> torch.Tensor:
    dtype = getattr(torch, part.dtype)
    with part.file.open("rb") as file:
        file.seek(part.offset)
        content = bytearray(file.read(count * ITEM_BYTES[part.dtype]))
    return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
