"""Attention of packed rows without memory: training's own for `sdpa`, a stand-in for flash."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from sailplan.model.packed_attention import attend_by_segment, set_language_attention

STAND_IN = "all_samples_at_once"


def by_segment(model: PreTrainedModel, *, flash: bool) -> None:
    """Has the samples of a row attend to themselves alone, as in training.

    Args:
        model: The model, with `sdpa`.
        flash: Whether flash-attention computes them, which has kernels for GPUs alone.
    """
    if not flash:
        attend_by_segment(model)
        return
    AttentionInterface.register(STAND_IN, _attend)
    AttentionMaskInterface.register(STAND_IN, lambda **_: None)
    set_language_attention(model, STAND_IN)


class _VarLen(torch.autograd.Function):
    """Flash-attention over all samples of a row at once: no scores, one output."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: tuple[int, ...],
    ) -> torch.Tensor:
        batch, heads, tokens, _ = query.shape
        output = query.new_empty(batch, tokens, heads, value.shape[-1])
        sums = torch.empty(batch, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.lengths = lengths
        _count_products(query, lengths, 2)
        return output

    @staticmethod
    def backward(ctx: Any, _grad: torch.Tensor) -> Any:
        query, key, value, _, _ = ctx.saved_tensors
        _count_products(query, ctx.lengths, 5)
        return *(torch.empty_like(tensor) for tensor in (query, key, value)), None


def _attend(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    position_ids: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    if torch.is_autocast_enabled("cpu"):  # flash-attention takes 16 bits alone
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (states.to(dtype) for states in (query, key, value))
    starts = (position_ids[0] == 0).nonzero().flatten().tolist()
    lengths = tuple(end - start for start, end in pairwise([*starts, query.shape[2]]))
    output: torch.Tensor = _VarLen.apply(query, key, value, lengths)
    return output, None


def _count_products(query: torch.Tensor, lengths: tuple[int, ...], count: int) -> None:
    """Has the products of queries and keys counted, without the memory of their results."""
    _, heads, _, width = query.shape
    for length in lengths:
        rows = torch.empty(heads, length, width, device="meta")
        for _ in range(count):
            torch.bmm(rows, rows.transpose(1, 2))
