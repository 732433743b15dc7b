"""The head and its loss, with the lifetimes that they have on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

_TILE_TOKENS, _TILE_VOCABULARY = 4096, 32768
"""TRL's tiles of logits (trl 1.16, `kernels/chunked_logprob.py`)."""


class _Chunked(torch.autograd.Function):
    """TRL's fused head on a GPU: tiles of logits, gradients summed in float32."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.compute = _compute_dtype(hidden)
        tile = _tile(hidden, ctx.compute)
        _products(hidden, weight, 1)
        del tile
        return hidden.new_empty(hidden.shape[0], dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, _grad: torch.Tensor) -> Any:
        hidden, weight = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad
        of_hidden = torch.empty(hidden.shape, dtype=torch.float32) if needs_hidden else None
        of_weight = torch.empty(weight.shape, dtype=torch.float32) if needs_weight else None
        tile = _tile(hidden, ctx.compute)
        _products(hidden, weight, 1 + needs_hidden + needs_weight)
        del tile
        return (
            None if of_hidden is None else of_hidden.to(hidden.dtype),
            None if of_weight is None else of_weight.to(weight.dtype),
        )


class _Liger(torch.autograd.Function):
    """Liger's fused linear cross entropy: the gradients are made in the forward pass, in chunks."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        tokens, width = hidden.shape
        vocabulary = weight.shape[0]
        # as many tokens at a time as keep the logits about as large as the hidden states
        pieces = -(-vocabulary // width)
        chunk = 1 << (max(1, -(-tokens // pieces)) - 1).bit_length()
        of_hidden = torch.empty(hidden.shape, dtype=hidden.dtype)
        needs_weight = ctx.needs_input_grad[1]
        of_weight = torch.empty(weight.shape, dtype=weight.dtype) if needs_weight else None
        logits = torch.empty(chunk, vocabulary, dtype=_compute_dtype(hidden))
        _products(hidden, weight, 2 + needs_weight)
        del logits
        ctx.save_for_backward(of_hidden, of_weight)
        return hidden.new_empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, _grad: torch.Tensor) -> Any:
        of_hidden, of_weight = ctx.saved_tensors
        return of_hidden, of_weight


def loss_of(
    kind: str, hidden: torch.Tensor, head: torch.nn.Module, *, trained_share: float
) -> tuple[torch.Tensor, Any]:
    """Returns the loss of a micro batch, and what must stay alive during backward.

    Args:
        kind: A `Workload.loss`.
        hidden: `[batch, tokens, width]`.
        head: The output embedding.
        trained_share: Of the tokens, those with a label.
    """
    batch, length, width = hidden.shape
    if kind in ("chunked", "liger"):
        count = max(1, round(batch * (length - 1) * trained_share))
        rows = hidden[:, :-1].reshape(-1, width)
        if kind == "chunked" and count < rows.shape[0]:
            rows = rows.index_select(0, torch.arange(count))
        weight: torch.Tensor = head.weight  # type: ignore[assignment]
        if kind == "liger":
            return _Liger.apply(rows, weight), None
        return -_Chunked.apply(rows, weight).sum(), None
    labels = torch.zeros(batch, length, dtype=torch.long)
    logits = head(hidden)
    if kind == "full_shifted":
        logits = logits.float()
        shifted = logits[:, :-1].contiguous().view(-1, logits.shape[-1])
        loss = functional.cross_entropy(shifted, labels[:, 1:].reshape(-1))
        return loss, None
    labels = functional.pad(labels, (0, 1), value=-100)[:, 1:].reshape(-1)
    loss = functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), labels)
    return loss, logits if kind == "full_kept" else None


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return hidden.dtype


def _tile(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(min(hidden.shape[0], _TILE_TOKENS), _TILE_VOCABULARY, dtype=dtype)


def _products(hidden: torch.Tensor, weight: torch.Tensor, count: int) -> None:
    """Has the products of hidden states and head counted, without the memory of their results."""
    meta = torch.empty(hidden.shape, device="meta"), torch.empty(weight.shape, device="meta")
    for _ in range(count):
        torch.mm(meta[0], meta[1].t())
