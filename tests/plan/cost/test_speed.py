"""Step times against what was published, and what strategies communicate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.plan_speed import LORA, PUBLISHED, shares, step, workload
from sailplan.plan.choice.candidates import sharding_of
from sailplan.plan.cost.traffic import offload_s, traffic
from sailplan.plan.sharding import Sharding, Time
from sailplan.run.blocks import Strategy
from tests.plan.made import made


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
