"""Predicted against published shares of the GPU's peak, for the page about plans.

    python benchmarks/plan_speed.py [--json FILE]

The published runs are those that say hardware and model; where tokens or checkpointing were not
published with the share, they are what is usual. Prints a table; exits with 1 where one is outside
of the printed band.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from sailplan.hardware.catalogue import find  # noqa: E402
from sailplan.plan.choice.candidates import sharding_of  # noqa: E402
from sailplan.plan.cost.speed import estimate, peak_flops  # noqa: E402
from sailplan.plan.sharding import Time  # noqa: E402
from sailplan.plan.workload import Adapter, Workload  # noqa: E402
from sailplan.run.blocks import Strategy  # noqa: E402
from tests.plan.made import made  # noqa: E402

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    print("| run | GPU | published | predicted | band |\n| --- | --- | --- | --- | --- |")
    record = {}
    for name, case in PUBLISHED.items():
        predicted, band = shares(case)
        inside = case.share / band <= predicted <= case.share * band
        record[name] = {"published": case.share, "predicted": predicted, "band": band}
        print(
            f"| {name} | {case.gpu} | {case.share:.0%} | {predicted:.0%} | × {band:.1f} |"
            f"{'' if inside else ' MISSED'}"
        )
        record[name]["inside"] = inside
    if options.json:
        options.json.write_text(json.dumps(record, indent=2))
    return 0 if all(one["inside"] for one in record.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
