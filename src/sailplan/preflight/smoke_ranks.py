"""What each rank of the smoke test runs: a toy model through the run's own launch, with times.

`python -m sailplan.preflight.smoke_ranks --config train.yaml`, as the launcher starts an entry
script. Rank 0 keeps `smoke.json` beside that file up to date: what it is doing, and what it found.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sailplan.errors import HardwareError
from sailplan.imports import calm_libraries, quick_imports
from sailplan.run.config import Run
from sailplan.train.errors import leave, report_errors

WIDTH, BATCH, STEPS = 64, 8, 5
REDUCED_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""What is summed over the ranks to measure a rate."""
REPEATS = 3


class Diary:
    """What a rank tells those who wait: the work at hand, and what was measured.

    Args:
        keep: Is given all of it, each time that something is added.
    """

    def __init__(self, keep: Callable[[Mapping[str, Any]], None]) -> None:
        self._keep = keep
        self.found: dict[str, Any] = {}

    def stage(self, name: str) -> None:
        """Says what begins now."""
        self.note(stage=name)

    def note(self, **found: Any) -> None:
        """Keeps what was found."""
        self.found |= found
        self._keep(self.found)


def _first_rank_keeps(path: Path) -> Callable[[Mapping[str, Any]], None]:
    def keep(found: Mapping[str, Any]) -> None:
        if int(os.environ.get("RANK", "0")) == 0:
            beside = path.with_suffix(".tmp")
            beside.write_text(json.dumps(dict(found)), encoding="utf-8")
            beside.replace(path)

    return keep


def main() -> None:
    """Runs one rank; what fails ends in one line and an exit code."""
    with report_errors():
        config = Path(sys.argv[sys.argv.index("--config") + 1])
        run = Run.from_flags(["--config", str(config)])
        diary = Diary(_first_rank_keeps(config.with_name("smoke.json")))
        accelerator = meet(run, diary)
        practise(accelerator, diary)
        diary.stage("done")
        accelerator.end_training()
        leave()


def meet(run: Run, diary: Diary) -> Any:
    """Imports the libraries, meets the other ranks, and returns accelerate's `Accelerator`."""
    on_cpu = bool(run.get("use_cpu"))
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed searches for others
    diary.stage("importing the libraries")
    start = time.monotonic()
    with quick_imports():
        calm_libraries()
        from accelerate import Accelerator, PartialState
    diary.note(imports_s=time.monotonic() - start)
    diary.stage("meeting the other ranks")
    start = time.monotonic()
    if on_cpu:  # as Trainer does it; with `Accelerator(cpu=True)` DeepSpeed would be left out
        PartialState(cpu=True)
    accelerator = Accelerator(mixed_precision="bf16" if run.get("bf16") else "no")
    diary.note(
        meeting_s=time.monotonic() - start,
        device=str(accelerator.device),
        world_size=accelerator.num_processes,
    )
    return accelerator


def practise(accelerator: Any, diary: Diary) -> None:
    """Sums over all ranks, and trains a toy for a few steps.

    Raises:
        HardwareError: A sum is wrong, or the toy does not learn.
    """
    from torch import distributed

    if accelerator.num_processes > 1:
        diary.note(backend=distributed.get_backend())
        diary.stage("the first all-reduce")
        diary.note(**_reduce(accelerator))
    diary.stage("training the toy")
    diary.note(**_train(accelerator, diary))


def _reduce(accelerator: Any) -> dict[str, float]:
    """Sums each rank's number over all, checks the sum, and measures the rate."""
    import torch
    from torch import distributed

    device, world = accelerator.device, accelerator.num_processes
    wanted = world * (world + 1) / 2
    start = time.monotonic()
    one = torch.full((1024,), float(accelerator.process_index + 1), device=device)
    distributed.all_reduce(one)
    _check_sum(one, wanted)  # it reads the values, and so waits for them
    first_s = time.monotonic() - start
    best = best_reduce_s(accelerator, world)
    return {
        "first_reduce_s": first_s,
        "reduce_s": best,
        "bytes_per_s": bus_bytes_s(accelerator, world, best),
    }


def best_reduce_s(accelerator: Any, ranks: int, group: Any = None) -> float:
    """Returns the seconds of the best of some large sums, and checks each.

    Args:
        accelerator: This rank's.
        ranks: The number of ranks that take part.
        group: Their process group; that of all ranks where not given.

    Raises:
        HardwareError: A sum is wrong.
    """
    import torch
    from torch import distributed

    device = accelerator.device
    members = distributed.get_process_group_ranks(group) if group else range(ranks)
    wanted = float(sum(rank + 1 for rank in members))
    best = float("inf")
    for _ in range(REPEATS):
        count = REDUCED_BYTES[device.type] // 4
        many = torch.full((count,), float(accelerator.process_index + 1), device=device)
        distributed.barrier(group)
        start = time.monotonic()
        distributed.all_reduce(many, group=group)
        _check_sum(many[-1:], wanted)
        best = min(best, time.monotonic() - start)
        _check_sum(many, wanted)
    return best


def bus_bytes_s(accelerator: Any, ranks: int, seconds: float) -> float:
    """Returns the bus bandwidth of such a sum, as nccl-tests defines it.

    Over a ring each rank sends and receives 2 (n-1)/n of the bytes.
    """
    return 2 * (ranks - 1) / ranks * REDUCED_BYTES[accelerator.device.type] / seconds


def _check_sum(found: Any, wanted: float) -> None:
    low, high = float(found.min()), float(found.max())
    if low != wanted or high != wanted:
        raise HardwareError(f"the ranks' sum is {low:g} to {high:g}", allowed=f"{wanted:g}")


def _train(accelerator: Any, diary: Diary) -> dict[str, float]:
    import torch

    torch.manual_seed(0)
    model: Any = toy(WIDTH)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-2)
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:  # a dataloader would say it
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = BATCH
    model, optimizer = accelerator.prepare(model, optimizer)
    stage = getattr(model, "zero_optimization_stage", None)
    diary.note(engine=type(model).__name__ + (f", stage {stage()}" if stage else ""))
    torch.manual_seed(accelerator.process_index)
    batch = torch.randn(BATCH, WIDTH, device=accelerator.device)
    losses: list[float] = []
    start = time.monotonic()
    for _ in range(STEPS):
        loss = (model(batch).float() - batch).pow(2).mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(accelerator.reduce(loss.detach(), reduction="mean")))
    if not losses[-1] < losses[0]:  # NaN too
        raise HardwareError(f"the toy's loss went from {losses[0]:g} to {losses[-1]:g}")
    seconds = time.monotonic() - start
    return {"step_s": seconds / STEPS, "first_loss": losses[0], "last_loss": losses[-1]}


def toy(width: int) -> Any:
    """Returns a model of two blocks, which FSDP and ZeRO-3 shard as they do a transformer's."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(width, width)

        def forward(self, hidden: Any) -> Any:
            return hidden + self.linear(hidden).tanh()

    class Toy(nn.Module):
        _no_split_modules = ("Block",)  # what accelerate's TRANSFORMER_BASED_WRAP looks for

        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Block(), Block())
            self.head = nn.Linear(width, width)

        def forward(self, hidden: Any) -> Any:
            return self.head(self.blocks(hidden))

    return Toy()


if __name__ == "__main__":
    main()
