"""How long a step takes: operations over what the GPU reaches of its peak, and what comes on top.

The share of the peak that a run reaches is an estimate from a few published runs; `docs/plan.md`
compares. It ranks configurations well, and says a run's length within the printed band.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sailplan.plan.cost.traffic import communication_s, offload_s
from sailplan.plan.profile import Profile
from sailplan.plan.sharding import Sharding, Time
from sailplan.plan.workload import Workload

if TYPE_CHECKING:
    from sailplan.hardware.catalogue import GpuModel

BEST_UTILISATION = 0.58
"""Of the peak, for long rows on a GPU whose memory keeps up: 8B LoRA on an RTX 4090 (59 %), 72B
LoRA at 8192 tokens on A100 (61 %), 8B in full under ZeRO-3 at batch 8 on A100 (52 %)."""

BALANCE = 160
"""Operations per byte of bandwidth up to which a GPU reaches that; A100 has 153, H100 295."""

HALF_SPEED_TOKENS = 300
"""Tokens of a micro batch at which half of it is reached: 72B at 256 tokens reached 16 %."""

INT8_SHARE = 0.3
"""What LLM.int8 reaches of the 16-bit speed: 13B on 4×A100 took 15.5 s for 128 short samples."""

_DEQUANTISED_BYTES = 5
"""Moved per 4-bit weight each time it is used: half a byte read, two written, two read again."""
_DEQUANTISING_EFFICIENCY = 0.6
"""Of the memory's bandwidth."""

_HOST_S_PER_LAYER = 1.2e-3
"""What eager Python needs to launch a layer's kernels, there and back."""

_OPTIMIZER_BYTES = 32
"""Read and written per trained weight by AdamW and by clipping."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Regime:
    """A kind of case, and how far off published runs of it lie."""

    name: str
    band: float
    """A factor to either side."""


DENSE = Regime(name="16-bit weights, long rows", band=1.3)
SHORT = Regime(name="16-bit weights, few tokens in a micro batch", band=1.6)
IMAGES = Regime(name="16-bit weights, rows with images", band=1.5)
NF4 = Regime(name="4-bit weights", band=1.7)
INT8 = Regime(name="8-bit weights", band=1.7)
UNUSUAL = Regime(name="a GPU that does not compute in 16 bits as asked", band=2.0)

SHORT_TOKENS = 1024
"""Below so many tokens in a micro batch, launching and communicating weigh more than computing."""


def regime_of(workload: Workload, gpu: GpuModel) -> Regime:
    """Returns the kind of case that a workload is on a GPU."""
    if compute_dtype(workload) == "float32" or (
        compute_dtype(workload) == "bfloat16" and not gpu.bf16
    ):
        return UNUSUAL
    if workload.quantization:
        return INT8 if workload.quantization == "int8" else NF4
    if workload.tokens < SHORT_TOKENS:
        return SHORT
    return IMAGES if workload.images else DENSE


def compute_dtype(workload: Workload) -> str:
    """Returns what matrix products are computed in."""
    return workload.autocast or workload.weights


def peak_flops(workload: Workload, gpu: GpuModel) -> float:
    """Returns the GPU's peak in the dtype that the run computes in."""
    return gpu.peak_flops(compute_dtype(workload))


def utilisation(workload: Workload, gpu: GpuModel, *, tokens: float) -> float:
    """Returns the share of the peak that computing a micro batch is taken to reach.

    Args:
        workload: What is computed.
        gpu: Where.
        tokens: Of the micro batch, as they are on average.
    """
    balance = peak_flops(workload, gpu) / gpu.bandwidth_bytes_s
    fed = min(1.0, math.sqrt(BALANCE / balance))
    filled = tokens / (tokens + HALF_SPEED_TOKENS)
    return BEST_UTILISATION * fed * filled * (INT8_SHARE if workload.quantization == "int8" else 1)


def estimate(
    profile: Profile,
    workload: Workload,
    sharding: Sharding,
    gpu: GpuModel,
    *,
    filled: float = 1.0,
) -> Time:
    """Estimates how long an optimizer step takes.

    Args:
        profile: One micro batch at its largest.
        workload: What it was made of; its accumulation counts.
        sharding: How it is divided.
        gpu: One of its ranks' GPUs.
        filled: Tokens of an average micro batch, as a share of those of the largest.
    """
    reached = utilisation(workload, gpu, tokens=workload.tokens * filled)
    flops = (profile.forward_flops + profile.backward_flops) * filled
    micro_s = flops / (peak_flops(workload, gpu) * reached)
    micro_s += _dequantising_s(profile, workload, gpu)
    passes = 1.0 if workload.checkpointing == "none" else 1.4
    micro_s = max(micro_s, len(profile.groups) * _HOST_S_PER_LAYER * passes)
    computing_s = micro_s * workload.accumulation + _optimizer_s(profile, sharding, gpu)
    waiting_s = communication_s(profile, workload, sharding, gpu, computing_s=computing_s)
    host_s = offload_s(profile, workload, sharding)
    step_s = computing_s + waiting_s + host_s
    regime = regime_of(workload, gpu)
    # What is communicated and offloaded is known less well than what is computed.
    band = regime.band + 0.5 * (waiting_s + host_s) / step_s
    return Time(
        step_s=step_s,
        compute_s=computing_s,
        communication_s=waiting_s,
        offload_s=host_s,
        utilisation=reached,
        band=band,
        regime=regime.name,
    )


def _dequantising_s(profile: Profile, workload: Workload, gpu: GpuModel) -> float:
    """Returns what unpacking 4-bit weights adds to a micro batch."""
    if workload.quantization not in ("nf4", "fp4"):
        return 0.0
    uses = 2 if workload.checkpointing == "none" else 3
    frozen = sum(group.frozen_elements for group in profile.groups)
    moved = frozen * uses * _DEQUANTISED_BYTES
    return moved / (gpu.bandwidth_bytes_s * _DEQUANTISING_EFFICIENCY)


def _optimizer_s(profile: Profile, sharding: Sharding, gpu: GpuModel) -> float:
    """Returns the optimizer's own time on the GPU."""
    if sharding.offload_optimizer:
        return 0.0
    divided = 1 if sharding.strategy in ("single", "ddp") else sharding.ranks
    states = profile.trained_parameters / divided
    return states * _OPTIMIZER_BYTES / gpu.bandwidth_bytes_s
