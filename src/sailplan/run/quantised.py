"""Which strategies cannot divide quantised weights, and would not say so.

Seen with bitsandbytes 0.50 and deepspeed 0.19 (docs/decisions/0028). 4-bit weights are the tensor
that they are packed in, which ZeRO-3 divides as it divides any other. Of 8-bit weights bitsandbytes
keeps a reference of its own, so that each rank holds all of them and its share besides. Under mixed
precision DeepSpeed casts every floating tensor, also one whose bits are pairs of 4-bit weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sailplan.errors import RunFileError

if TYPE_CHECKING:
    from sailplan.run.config import Run

_DIVIDE_WEIGHTS = ("zero3", "zero3_offload", "fsdp2")


def whole_under(run: Run) -> tuple[str, ...]:
    """Returns the strategies that divide weights, where they cannot divide those of a run."""
    return _DIVIDE_WEIGHTS if run.get("load_in_8bit") else ()


def refuse_undivided(run: Run, strategy: str, *, precision: str | None) -> None:
    """Refuses a strategy that would keep quantised weights whole on each rank, or break them.

    Args:
        run: The run.
        strategy: How it is divided.
        precision: What mixed precision computes in, as a dtype's name; None without it.

    Raises:
        RunFileError: It would.
    """
    if strategy in whole_under(run):
        got = f"load_in_8bit with strategy {strategy}, which cannot shard 8-bit weights: each rank "
        got += "would hold them whole"
        allowed = "single, ddp, zero1, zero2"
        raise RunFileError(got, allowed=allowed, todo=f"or load_in_4bit, which {strategy} shards")
    storage = run.get("bnb_4bit_quant_storage")
    by_deepspeed = strategy.startswith("zero") and run.get("load_in_4bit") and precision
    if by_deepspeed and storage not in ("uint8", precision):
        got = f"bnb_4bit_quant_storage {storage} with strategy {strategy} in {precision}, to which "
        got += "DeepSpeed would cast the packed bits"
        raise RunFileError(got, allowed=f"uint8, {precision}")


def precision_of(*, bf16: object, fp16: object) -> str | None:
    """Returns what mixed precision computes in, as a dtype's name; None without it."""
    return "bfloat16" if bf16 else "float16" if fp16 else None
