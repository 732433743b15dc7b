"""Attention of several samples in one row, each by itself, without a mask of tokens × tokens.

transformers finds the samples of a `[1, tokens]` row by its position ids, which begin anew with
each. Flash-attention then computes every sample by itself; for `sdpa` a mask of the whole row is
made instead, which at 4,096 tokens costs more than the padding that it saves. This implementation
cuts the row and calls the same `sdpa` for each sample, causal without a mask. All else (padded
rows, generation with a cache, sliding windows that are shorter than the row) it leaves to
transformers' own `sdpa` and its mask.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, or_masks, sdpa_mask

SEGMENTS = "sdpa_by_segment"
"""The name under which transformers knows it."""
_MORE_THAN_CAUSAL = or_masks(causal_mask_function).__qualname__
"""The name of masks in which some tokens see later ones: images, where they are read both ways."""


def attend_by_segment(model: PreTrainedModel) -> None:
    """Switches the language model of a loaded model from `sdpa` to this implementation.

    A vision tower keeps its own: its position ids mean something else.
    """
    AttentionInterface.register(SEGMENTS, segment_attention)
    AttentionMaskInterface.register(SEGMENTS, segment_mask)
    set_language_attention(model, SEGMENTS)


def attend_by_mask(model: PreTrainedModel) -> None:
    """Switches back to transformers' `sdpa`."""
    set_language_attention(model, "sdpa")


def set_language_attention(model: PreTrainedModel, implementation: str) -> None:
    """Switches the language model of a loaded model to a registered implementation."""
    config = model.config
    if config.get_text_config() is config:
        model.set_attn_implementation(implementation)
        return
    text = next(
        name for name in config.sub_configs if getattr(config, name) is config.get_text_config()
    )
    model.set_attn_implementation({text: implementation})


def segment_mask(
    *,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    **arguments: Any,
) -> torch.Tensor | None:
    """Returns no mask where the samples of the rows are all there is to mask, else `sdpa`'s.

    Args:
        q_length: Tokens that attend.
        kv_length: Tokens that are attended to.
        mask_function: Says which token attends to which.
        attention_mask: Which tokens are padding, `[batch, tokens]`; None without any.
        local_size: The sliding window, in tokens.
        use_vmap: Whether the model has rules of its own for the mask.
        **arguments: What `sdpa_mask` takes besides.
    """
    within_window = local_size is None or q_length <= local_size
    causal = not use_vmap and mask_function.__qualname__ != _MORE_THAN_CAUSAL
    if attention_mask is None and q_length == kv_length and within_window and causal:
        return None
    mask: torch.Tensor | None = sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        use_vmap=use_vmap,
        **arguments,
    )
    return mask


def segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    position_ids: torch.Tensor | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Attends as transformers' `sdpa` does, but within each sample of a `[1, tokens]` row.

    Args:
        module: The attention layer.
        query: `[batch, heads, tokens, head_dim]`.
        key: `[batch, key_heads, tokens, head_dim]`.
        value: As `key`.
        attention_mask: A mask, where there is one: it then says all.
        position_ids: `[batch, tokens]`; a sample begins where they do not rise by one.
        **arguments: What `sdpa` takes besides.

    Returns:
        `[batch, tokens, heads, head_dim]`, and None for the weights.
    """
    is_row = query.shape[0] == 1 and query.shape[2] == key.shape[2]
    if attention_mask is not None or position_ids is None or not is_row:
        whole: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **arguments
        )
        return whole
    outputs = [
        sdpa_attention_forward(
            module,
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            None,
            **arguments,
        )[0]
        for start, end in _segments(position_ids)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), None


_last: tuple[weakref.ref[torch.Tensor], list[tuple[int, int]]] | None = None


def _segments(position_ids: torch.Tensor) -> list[tuple[int, int]]:
    """Returns where each sample of the row begins and ends.

    Every layer is given the same tensor, so it is read once: from a GPU that means to wait.
    """
    global _last
    if _last is not None and _last[0]() is position_ids:
        return _last[1]
    positions = position_ids[0]
    starts = ((positions[1:] - positions[:-1]) != 1).nonzero().flatten() + 1
    bounds = [0, *starts.tolist(), len(positions)]
    found = list(pairwise(bounds))
    _last = weakref.ref(position_ids), found
    return found
