"""Step times against what was published, and what strategies communicate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from sailplan.hardware.catalogue import find
from sailplan.plan.candidates import sharding_of
from sailplan.plan.sharding import Sharding, Time
from sailplan.plan.speed import estimate, peak_flops
from sailplan.plan.traffic import offload_s, traffic
from sailplan.plan.workload import Adapter, Workload
from sailplan.run.blocks import Strategy
from tests.plan.made import made

LORA = Adapter(rank=16, targets="all-linear")


def workload(tokens: int, *, rows: int = 1, accumulation: int = 1, **fields: object) -> Workload:
    fields = {"checkpointing": "non_reentrant", **fields}
    return Workload(
        config={},
        micro_batch=rows,
        length_tokens=tokens // rows,
        accumulation=accumulation,
        **fields,  # type: ignore[arg-type]
    )


def step(gpu: str, billions: float, work: Workload, strategy: Strategy, ranks: int) -> Time:
    profile = made(work, int(billions * 1e9))
    return estimate(profile, work, sharding_of(strategy, ranks, 8), find(gpu))


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A run whose share of the peak was published, recomputing counted as operations."""

    gpu: str
    billions: float
    work: Workload
    strategy: Strategy
    ranks: int
    share: float


PUBLISHED = {
    "8B in full, ZeRO-3, batch 8 of 2048": Published(
        gpu="A100-80GB", billions=8, work=workload(16384, rows=8), strategy="zero3", ranks=8,
        share=0.52,
    ),
    "8B in full, ZeRO-3, batch 1 of 2048": Published(
        gpu="A100-80GB", billions=8, work=workload(2048), strategy="zero3", ranks=8, share=0.40,
    ),
    "72B LoRA, ZeRO-3, 8192 tokens": Published(
        gpu="A100-80GB", billions=72, work=workload(8192, adapter=LORA), strategy="zero3", ranks=4,
        share=0.61,
    ),
    "72B LoRA, ZeRO-3, 256 tokens": Published(
        gpu="A100-80GB", billions=72, work=workload(256, adapter=LORA), strategy="zero3", ranks=4,
        share=0.16,
    ),
    "7B in full, no checkpointing": Published(
        gpu="H200", billions=7, work=workload(8192, checkpointing="none"), strategy="single",
        ranks=1, share=0.51,
    ),
    "8B in full, FSDP2": Published(
        gpu="H100-80GB", billions=8, work=workload(8192, checkpointing="none"), strategy="fsdp2",
        ranks=8, share=0.35,
    ),
    "8B LoRA": Published(
        gpu="RTX-4090", billions=8, work=workload(4096, adapter=LORA), strategy="single", ranks=1,
        share=0.59,
    ),
    "8B QLoRA": Published(
        gpu="RTX-4090", billions=8, work=workload(4096, adapter=LORA, quantization="nf4"),
        strategy="single", ranks=1, share=0.46,
    ),
    "3B LoRA, short rows": Published(
        gpu="L40S", billions=3, work=workload(1024, adapter=LORA), strategy="single", ranks=1,
        share=0.26,
    ),
}  # fmt: skip
"""Where tokens or checkpointing were not published with the share, they are what is usual."""


def shares(case: Published) -> tuple[float, float]:
    """The predicted share of the peak, and the band around it."""
    time = step(case.gpu, case.billions, case.work, case.strategy, case.ranks)
    profile = made(case.work, int(case.billions * 1e9))
    flops = profile.forward_flops + profile.backward_flops
    return flops / time.step_s / peak_flops(case.work, find(case.gpu)), time.band


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_share_of_the_peak_is_within_the_band(name: str) -> None:
    case = PUBLISHED[name]
    predicted, band = shares(case)
    assert case.share / band <= predicted <= case.share * band


def test_published_step_of_alpaca_lora_is_within_the_band() -> None:
    # 13B in 8 bits on 4 A100: 15.5 s for 128 samples of some 270 tokens, grouped by length
    work = workload(4 * 270, rows=4, accumulation=8, adapter=LORA, quantization="int8")
    assert within(step("A100-80GB", 13, replace(work, weights="float16"), "ddp", 4), 15.5)


def test_published_run_of_the_article_is_within_the_band() -> None:
    # Qwen2-VL-7B on an L4: 129 steps in 46:54 by one figure, in 1:31:58 by another
    work = workload(4 * 570, rows=4, accumulation=8, adapter=LORA, quantization="nf4")
    time = step("L4", 7.6, work, "single", 1)
    assert within(time, 2814 / 129)
    assert within(time, 5518 / 129)


def within(time: Time, seconds: float) -> bool:
    low, high = time.range_s
    return low <= seconds <= high


def test_published_cost_of_the_optimizer_on_the_host_is_met() -> None:
    # ZeRO-2 with the optimizer in host memory, 8B on 8 A100: 2.9 s a step
    work = workload(2048)
    sharding = Sharding(strategy="zero2", ranks=8, ranks_per_node=8, offload_optimizer=True)
    assert offload_s(made(work, 8_030_000_000), work, sharding) == pytest.approx(2.9, rel=0.1)


@pytest.mark.parametrize(
    ("strategy", "per_step", "per_micro"),
    [
        ("single", 0, 0),
        ("ddp", 2 * 7 / 8 * 16, 0),
        ("zero1", 3 * 7 / 8 * 16, 0),
        ("zero2", 7 / 8 * 16, 7 / 8 * 16),
        ("zero3", 0, 3 * 7 / 8 * 16),
    ],
)
def test_traffic_is_that_of_rings(strategy: Strategy, per_step: float, per_micro: float) -> None:
    work = workload(2048)
    ranks = 1 if strategy == "single" else 8
    sent = traffic(made(work, 8 * 10**9), work, sharding_of(strategy, ranks, 8))
    assert sent.per_step_bytes == pytest.approx(per_step * 1e9)
    assert sent.per_micro_bytes == pytest.approx(per_micro * 1e9)


def test_more_nodes_wait_longer_and_one_gpu_waits_for_none() -> None:
    work = workload(4096)
    waits = [
        step("H100-PCIe", 8, work, "zero3" if ranks > 1 else "single", ranks).communication_s
        for ranks in (1, 8, 16, 512)
    ]
    assert waits[0] == 0
    assert waits == sorted(waits)


def test_gpu_without_bf16_is_slow_and_known_least() -> None:
    slow = step("T4", 1, workload(2048), "single", 1)
    fast = step("T4", 1, workload(2048, weights="float16"), "single", 1)
    assert slow.step_s > 3 * fast.step_s
    assert slow.band > fast.band
