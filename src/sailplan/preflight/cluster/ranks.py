"""What each rank of the smoke job runs: the smoke test's toy, and what tells nodes apart.

`python -m sailplan.preflight.cluster.ranks --config train.yaml`, as accelerate's launcher starts an
entry script. Each rank keeps a record beside that file up to date.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sailplan.hardware.xids import GpuWatch
from sailplan.preflight.cluster.node import host
from sailplan.preflight.cluster.records import RankRecord, rank_file, write
from sailplan.preflight.smoke_ranks import (
    Diary,
    best_reduce_s,
    bus_bytes_s,
    meet,
    practise,
    toy,
)
from sailplan.records import from_json
from sailplan.run.config import Run
from sailplan.train.errors import leave, report_errors

CLOCK_LOOKS = 5
"""How often all ranks meet to compare their nodes' clocks."""

WIDTHS = {"cpu": (256, 64), "cuda": (4096, 4096)}
"""Width and rows of the work that each rank does alone: enough for its device to be busy."""

WORK_FOR_S = {"cpu": 0.5, "cuda": 1.0}
"""How long it is repeated; the best time counts."""


def main() -> None:
    """Runs one rank; what fails ends in one line and an exit code."""
    with report_errors():
        config = Path(sys.argv[sys.argv.index("--config") + 1])
        run = Run.from_flags(["--config", str(config)])
        diary = Diary(_keeper(config.parent, int(os.environ.get("RANK", "0"))))
        accelerator = meet(run, diary)
        watch = _watch(accelerator, diary)
        practise(accelerator, diary)
        diary.stage("comparing the clocks")
        diary.note(clocks_s=list(_clocks()))
        diary.stage("summing inside the nodes")
        _sum_inside(accelerator, diary)
        diary.stage("summing across the nodes")
        _sum_across(accelerator, diary)
        diary.stage("working alone")
        diary.note(own_step_s=_own_step_s(accelerator))
        if watch is not None:
            diary.note(xids=watch.xids(), slowed=watch.slowed())
        diary.stage("done")
        accelerator.end_training()
        leave()


def _keeper(folder: Path, rank: int) -> Callable[[Mapping[str, Any]], None]:
    """Returns what writes this rank's record; a disk that fails is the doctor's to find."""
    known = {"rank": rank, "host": host()}

    def keep(found: Mapping[str, Any]) -> None:
        with suppress(OSError):
            write(rank_file(folder, rank), from_json(RankRecord, {**known, **found}))

    return keep


def _watch(accelerator: Any, diary: Diary) -> GpuWatch | None:
    """Begins to note down what becomes of this rank's GPU; None on the CPU."""
    import torch

    if accelerator.device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(accelerator.device)
    diary.note(gpu=properties.name)
    return GpuWatch(f"GPU-{properties.uuid}")


def _clocks() -> Iterator[float]:
    from torch import distributed

    for _ in range(CLOCK_LOOKS):
        if distributed.is_initialized():
            distributed.barrier()
        yield time.time()


def _hosts(accelerator: Any) -> list[str]:
    """Returns the node of each rank."""
    from torch import distributed

    if accelerator.num_processes == 1:
        return [host()]
    hosts = [""] * accelerator.num_processes
    distributed.all_gather_object(hosts, host())
    return hosts


def _sum_inside(accelerator: Any, diary: Diary) -> None:
    """Measures the sums of each node's own ranks, on all nodes at once."""
    hosts = _hosts(accelerator)
    for _, rate in _rates(accelerator, hosts, [(one,) for one in dict.fromkeys(hosts)]):
        diary.note(inside_bytes_s=rate)


def _sum_across(accelerator: Any, diary: Diary) -> None:
    """Measures the sums of each two neighbouring nodes."""
    hosts = _hosts(accelerator)
    rates = _rates(accelerator, hosts, neighbours(tuple(dict.fromkeys(hosts))))
    diary.note(pairs=[{"hosts": list(pair), "bytes_s": rate} for pair, rate in rates])


def neighbours(hosts: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Returns each two nodes that stand beside each other in a ring, in three turns at most.

    No node stands twice in a turn, so that those of a turn can work at once.
    """
    if len(hosts) < 3:
        return [hosts] if len(hosts) == 2 else []
    pairs = list(zip(hosts, (*hosts[1:], hosts[0]), strict=True))
    last = [pairs.pop()] if len(pairs) % 2 else []
    return [*pairs[::2], *pairs[1::2], *last]


def _rates(
    accelerator: Any, hosts: list[str], groups: list[tuple[str, ...]]
) -> list[tuple[tuple[str, ...], float]]:
    """Returns the bus bandwidth of each group of nodes that this rank's is in.

    Args:
        accelerator: This rank's.
        hosts: The node of each rank.
        groups: Of nodes, the same ones on all ranks.
    """
    from torch import distributed

    members = [[rank for rank, its in enumerate(hosts) if its in group] for group in groups]
    # All ranks make all groups, in one order; then each has its own sums to do.
    made = [distributed.new_group(ranks) if len(ranks) > 1 else None for ranks in members]
    found = []
    for group, ranks, handle in zip(groups, members, made, strict=True):
        if handle is not None and accelerator.process_index in ranks:
            seconds = best_reduce_s(accelerator, len(ranks), handle)
            found.append((group, bus_bytes_s(accelerator, len(ranks), seconds)))
    return found


def _own_step_s(accelerator: Any) -> float:
    """Returns the seconds of a step of work that waits for no other rank, at its best."""
    import torch
    from torch import distributed

    device = accelerator.device
    width, rows = WIDTHS[device.type]
    model = toy(width).to(device)
    batch = torch.randn(rows, width, device=device)
    dtype = torch.bfloat16 if device.type == "cpu" or torch.cuda.is_bf16_supported() else None

    def work() -> float:
        start = time.monotonic()
        with torch.autocast(device.type, dtype=dtype, enabled=device.type == "cuda"):
            loss = (model(batch).float() - batch).pow(2).mean()
        loss.backward()
        float(loss.detach())  # waits for it
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - start

    work()
    if distributed.is_initialized():
        distributed.barrier()  # all work at once, as in training
    best, end = float("inf"), time.monotonic() + WORK_FOR_S[device.type]
    while time.monotonic() < end:
        best = min(best, work())
    return best


if __name__ == "__main__":
    main()
