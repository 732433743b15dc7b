"""What ranks send each other and the host in one optimizer step, and how long it takes.

Collectives are taken as rings: each rank sends and receives (W-1)/W of the bytes for an all-gather
or a reduce-scatter, twice that for an all-reduce. Between nodes they run at the network's speed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sailplan.plan.profile import Profile
from sailplan.plan.sharding import Sharding
from sailplan.plan.workload import Workload

if TYPE_CHECKING:
    from sailplan.hardware.catalogue import GpuModel

LINK_EFFICIENCY = 0.7
"""Of a link's nominal speed in one direction, what NCCL's large collectives reach."""

COLLECTIVE_LATENCY_S = 3e-5
"""Of a collective within a node; between nodes it grows with the logarithm of their number."""

HOST_ADAM_BYTES_PER_S = 77e9
"""At which DeepSpeed's CPU Adam works through its states: 8.03 billion parameters of 28 bytes (fp32
weight and two moments read and written, a gradient read) took 2.9 s on 8×A100 under ZeRO-2."""

_ADAM_BYTES = 28

_HOST_LINK_BYTES_PER_S = 20e9
"""Of PCIe 4 ×16, what pinned copies reach with all GPUs of a node at work."""

_HIDDEN = {
    "single": 0.0,
    "ddp": 0.8,
    # DeepSpeed's `overlap_comm` is off by default below stage 3.
    "zero1": 0.0,
    "zero2": 0.0,
    "zero3": 0.6,
    "zero3_offload": 0.4,
    "fsdp2": 0.6,
}
"""The share of the communication that runs behind computing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Bytes that each rank sends in one optimizer step."""

    per_step_bytes: float
    """Once a step."""
    per_micro_bytes: float
    """In each micro batch."""
    collectives_per_micro: int
    """Their number in a micro batch, which latency counts by."""


def traffic(profile: Profile, workload: Workload, sharding: Sharding) -> Traffic:
    """Returns what a strategy communicates.

    Args:
        profile: The micro batch.
        workload: What it was made of.
        sharding: The strategy and the ranks.
    """
    ranks = sharding.ranks
    share = (ranks - 1) / ranks
    trained, frozen = profile.trained_parameters, profile.parameters - profile.trained_parameters
    trained_bytes = sum(group.trained_bytes for group in profile.groups)
    frozen_bytes = sum(group.frozen_bytes for group in profile.groups)
    half = 2 * trained  # DeepSpeed sends 16 bits, and FSDP under mixed precision
    layers = len(profile.groups)
    if ranks == 1:
        return Traffic(per_step_bytes=0, per_micro_bytes=0, collectives_per_micro=0)
    if sharding.strategy == "ddp":
        bytes_ = 2 * share * trained_bytes
        return Traffic(per_step_bytes=bytes_, per_micro_bytes=0, collectives_per_micro=1)
    if sharding.strategy == "zero1":
        return Traffic(per_step_bytes=3 * share * half, per_micro_bytes=0, collectives_per_micro=1)
    if sharding.strategy == "zero2":
        # Its gradients are summed over the ranks in every micro batch, as no rank keeps all.
        return Traffic(
            per_step_bytes=share * half,
            per_micro_bytes=share * half,
            collectives_per_micro=layers,
        )
    held = frozen_bytes if workload.quantization else 2 * frozen
    gathered = 2 * share * (half + held)  # in the forward pass and in the backward pass
    return Traffic(
        per_step_bytes=0,
        per_micro_bytes=gathered + share * half,
        collectives_per_micro=3 * layers,
    )


def communication_s(
    profile: Profile, workload: Workload, sharding: Sharding, gpu: GpuModel, *, computing_s: float
) -> float:
    """Returns the seconds of a step that ranks communicate and that computing cannot hide.

    Args:
        profile: The micro batch.
        workload: What it was made of; its accumulation counts.
        sharding: The strategy and the ranks.
        gpu: Its link and its network.
        computing_s: What a step computes.
    """
    sent = traffic(profile, workload, sharding)
    accumulation = workload.accumulation
    nodes = math.ceil(sharding.ranks / sharding.ranks_per_node)
    speed = gpu.link.bytes_s * LINK_EFFICIENCY
    latency = COLLECTIVE_LATENCY_S
    if nodes > 1:
        # A node's ring crosses the network once, over the adapters of all its GPUs.
        network = gpu.network.bytes_s * sharding.ranks_per_node * LINK_EFFICIENCY
        speed = min(speed, network)
        latency *= 1 + math.log2(nodes)
    moved = sent.per_step_bytes + accumulation * sent.per_micro_bytes
    total = moved / speed + accumulation * sent.collectives_per_micro * latency
    hidden = min(total * _HIDDEN[sharding.strategy], 0.8 * computing_s)
    return total - hidden


def offload_s(profile: Profile, workload: Workload, sharding: Sharding) -> float:
    """Returns what the host adds to a step: CPU Adam, and the copies to and from it."""
    seconds = 0.0
    on_node = min(sharding.ranks_per_node, sharding.ranks) / sharding.ranks
    if sharding.offload_optimizer:
        trained = profile.trained_parameters
        seconds += trained * on_node * _ADAM_BYTES / HOST_ADAM_BYTES_PER_S
        copied = (workload.accumulation + 1) * 2 * trained / sharding.ranks
        seconds += copied / _HOST_LINK_BYTES_PER_S
    if sharding.offload_parameters:
        copied = 2 * 2 * profile.parameters / sharding.ranks * workload.accumulation
        seconds += copied / _HOST_LINK_BYTES_PER_S
    return seconds
