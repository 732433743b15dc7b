"""Whether the samples of a micro batch share one row, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sailplan.errors import RunFileError
from sailplan.model.attention import FLASH

if TYPE_CHECKING:
    from sailplan.model.families import Family
    from sailplan.run.config import Run

_SDPA = "sdpa"
PACK, PAD = "pack", "pad"
_TRL = ("packing", "padding_free")
READ = ("batching", *_TRL, "neftune_noise_alpha")
"""The fields of a run that decide."""
_FAST = (_SDPA, FLASH, "flash_attention_3", "flash_attention_4", "flex_attention")
"""Attention that computes each sample of a row by itself; others make a mask of the whole row."""


def choose_batching(run: Run, family: Family, attention: str) -> tuple[bool, str]:
    """Returns whether to pack, and the words that say so and why.

    Args:
        run: The run.
        family: The model's family.
        attention: Its attention implementation.

    Raises:
        RunFileError: Packing is asked for and the model cannot.
    """
    asked, by = _asked(run)
    obstacle = family.packing_obstacle
    if asked == PACK and obstacle is not None:
        raise RunFileError(
            f"{by} for {family.name}: {obstacle}",
            todo="drop it: samples of like length are then padded together",
        )
    if asked == PAD:
        return False, f"batching: pad ({by})"
    if obstacle is not None:
        return False, f"batching: pad ({family.name} cannot be packed: {obstacle})"
    if asked == PACK:
        return True, f"batching: pack ({by}); each optimizer step has the samples it would have had"
    if run.get("neftune_noise_alpha"):
        return False, "batching: pad (neftune_noise_alpha makes less noise in longer rows)"
    if attention not in _FAST:
        return False, f"batching: pad ({attention} attention would need a mask of tokens × tokens)"
    if family.sliding_window_tokens is not None and attention == _SDPA:
        window = f"a sliding window of {family.sliding_window_tokens} tokens without flash-attn"
        return False, f"batching: pad ({window} would need a mask of tokens × tokens)"
    return True, "batching: pack; each optimizer step has the samples it would have had"


def _asked(run: Run) -> tuple[str | None, str]:
    """Returns what the run file asks for, and how it is written there."""
    if run.get("batching"):
        return str(run.get("batching")), f"batching: {run.get('batching')}"
    for name in _TRL:
        if run.is_set(name):
            return (PACK, f"{name}: true") if run.get(name) else (PAD, f"{name}: false")
    return None, ""
