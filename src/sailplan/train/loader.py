"""The DataLoader's settings, where the run leaves them open: measured on batches of the run itself.

How many workers there are changes when a batch is there, never which rows it has: the sampler says
that, or the stream. Workers start anew with every epoch (`dataloader_persistent_workers` stays
off): kept ones draw one random number fewer, and dropout would go otherwise than without workers.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch

from sailplan.errors import SailplanError
from sailplan.hardware.detect import Detected, detect_cpu_cores
from sailplan.plan.record import Plan
from sailplan.train.data_wait import Loading
from sailplan.train.ranks import local_ranks, of_all_ranks
from sailplan.train.shared_memory import (
    DEEPSPEED_BYTES,
    PREFETCHED,
    InFlight,
    free_bytes,
    room_for,
)

if TYPE_CHECKING:
    from sailplan.run.config import Run

MOST_WORKERS = 8
"""Of a rank, where nothing says how many batches a second it needs."""

LIGHT_S = 0.002
"""A micro batch that is loaded in less is no work: four ready rows of text take half of it."""

START_S = 1.0
"""An epoch that is loaded in less is over before workers are worth their start."""

_MARGIN = 1.5
"""Workers over those that keep up on average: batches differ."""

_AMPLE_BYTES = 8 << 30
"""Of shared memory for each rank: no stream is opened to see how large its batches are."""

_PAGE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What loading a micro batch takes."""

    load_s: float
    """Of rows that are spread over the data; NaN for a stream, which first must be filled."""
    batch_bytes: int
    """Of the longest rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What decides on the number of workers of a rank."""

    cores: Detected[int]
    """Of this machine, that its ranks may use."""
    ranks: int
    """On this machine."""
    threads: int
    """Cores that a rank computes with: its threads on a CPU, one beside a GPU."""
    on_gpu: bool
    load_s: float
    """Seconds that a micro batch takes to load; NaN where not known."""
    epoch_batches: float
    """Micro batches of the rank in an epoch."""
    needed_s: float | None = None
    """Seconds that a micro batch takes to compute, as planned."""

    @property
    def spare(self) -> int:
        """Cores of the rank that it does not compute with."""
        return max(0, self.cores.value // self.ranks - self.threads)


def choose_workers(demand: Demand) -> Detected[int]:
    """Chooses the workers of a rank, with the reason.

    Beside a GPU there is one at least: a core that two share still does more than one that waits.
    """
    cores = f"{demand.cores.value} cores"
    shared = cores if demand.ranks == 1 else f"{cores} for {demand.ranks} ranks"
    epoch_s = demand.epoch_batches * demand.load_s
    if epoch_s < START_S:
        return Detected(value=0, reason=f"an epoch takes {epoch_s:.2f} s to load")
    if demand.load_s < LIGHT_S:
        took = f"a micro batch takes {demand.load_s * 1e3:.1f} ms to load"
        return Detected(value=int(demand.on_gpu), reason=took)
    if demand.spare == 0 and not demand.on_gpu:
        return Detected(value=0, reason=f"training itself uses all of {shared}")
    wanted, took = MOST_WORKERS, "rows are encoded while training"
    if not math.isnan(demand.load_s):
        took = f"a micro batch takes {demand.load_s * 1e3:.0f} ms to load"
    if demand.needed_s is not None and not math.isnan(demand.load_s):
        wanted = math.ceil(_MARGIN * demand.load_s / demand.needed_s)
        took += f" and, as planned, {demand.needed_s * 1e3:.0f} ms to compute"
    workers = max(1, min(wanted, demand.spare))
    of = f"of {shared} ({demand.cores.reason})"
    return Detected(value=workers, reason=f"{took}; {of}")


def settle_loader(run: Run, trainer: Any, plan: Plan | None) -> tuple[Loading, list[str]]:
    """Settles workers and prefetching of a trainer that is about to train, on all ranks at once.

    Args:
        run: The run; what it writes is kept, unless /dev/shm has no room for it.
        trainer: The trainer, with its datasets and its collator.
        plan: The run's plan, where there is one.

    Returns:
        How batches will come about, and what to tell.
    """
    args, on_gpu = trainer.args, trainer.args.device.type == "cuda"
    streams = not isinstance(trainer.train_dataset, datasets.Dataset)
    rows = math.inf if streams else len(trainer.train_dataset)
    demand = Demand(
        cores=detect_cpu_cores(),
        ranks=local_ranks(),
        threads=1 if on_gpu else torch.get_num_threads(),
        on_gpu=on_gpu,
        load_s=math.nan,
        epoch_batches=rows / (args.per_device_train_batch_size * args.world_size),
        needed_s=_needed_s(args, plan) if on_gpu else None,
    )
    notes: list[str] = []
    written = run.is_set("dataloader_num_workers")
    if not written and trainer.resumption and trainer.resumption.workers is not None:
        args.dataloader_num_workers, written = trainer.resumption.workers, True
    if not written or args.dataloader_num_workers:
        probe = _slowest(trainer, _probe(trainer.train_dataset, trainer.data_collator, args))
        if not written:
            chosen = choose_workers(replace(demand, load_s=probe.load_s))
            args.dataloader_num_workers = chosen.value
            notes.append(f"dataloader_num_workers: {chosen.value}, {chosen.reason}")
        notes += _fit_shared_memory(trainer, probe)
    loading = Loading(
        workers=args.dataloader_num_workers,
        cores=demand.cores.value,
        ranks=demand.ranks,
        spare=demand.spare,
        persistent=args.dataloader_persistent_workers,
        streams=streams,
        numbers_per_pixel=_numbers_per_pixel(trainer.model.config),
    )
    return loading, notes


def _numbers_per_pixel(config: Any) -> int:
    frames = getattr(getattr(config, "vision_config", None), "temporal_patch_size", None)
    return 3 * (frames or 1)


def _needed_s(args: Any, plan: Plan | None) -> float | None:
    """Returns the planned seconds of a micro batch, where the plan is of such ones."""
    if plan is None:
        return None
    chosen = plan.chosen
    if (args.per_device_train_batch_size, args.world_size) != (chosen.micro_batch, chosen.ranks):
        return None
    return chosen.time.step_s / chosen.accumulation


def _probe(rows: Any, collator: Any, args: Any) -> Probe | None:
    """Loads batches as a worker will; None where that fails (training will tell) or is no use."""
    count = args.per_device_train_batch_size
    try:
        if not isinstance(rows, datasets.Dataset):
            if free_bytes() >= _AMPLE_BYTES * local_ranks():
                return None
            batch = collator(list(itertools.islice(iter(rows), count)))
            return Probe(load_s=math.nan, batch_bytes=bytes_of(batch))
        longest = np.argsort(-np.asarray(rows["length"][:]), kind="stable")[:count]
        # It comes first, so that the other one finds everything warm.
        largest = collator(rows.__getitems__(longest.tolist()))
        spread = np.linspace(0, len(rows) - 1, min(count, len(rows)), dtype=np.int64).tolist()
        began = time.perf_counter()
        collator(rows.__getitems__(spread))
        load_s = time.perf_counter() - began
    except SailplanError:
        return None
    return Probe(load_s=load_s, batch_bytes=bytes_of(largest))


def _slowest(trainer: Any, probe: Probe | None) -> Probe:
    """Returns the largest figures of all ranks, so that all choose alike."""
    own = [probe.load_s, probe.batch_bytes] if probe else [math.nan, 0]
    load_s, batch_bytes = of_all_ranks(trainer.accelerator, own).max(axis=0)
    return Probe(load_s=float(load_s), batch_bytes=int(batch_bytes))


def bytes_of(batch: Mapping[str, Any]) -> int:
    """Returns what a batch takes of shared memory: each of its tensors, in whole pages."""
    sizes = [value.nbytes for value in batch.values() if isinstance(value, torch.Tensor)]
    return sum(-(-size // _PAGE) * _PAGE for size in sizes)


def _fit_shared_memory(trainer: Any, probe: Probe) -> list[str]:
    """Takes workers and prefetching back where /dev/shm has no room for their batches."""
    args = trainer.args
    workers, ahead = args.dataloader_num_workers, args.dataloader_prefetch_factor or PREFETCHED
    held = 1 if args.device.type == "cuda" else args.gradient_accumulation_steps + 1
    evaluates = trainer.eval_dataset is not None and args.eval_strategy != "no"
    of_evaluation = args.per_device_eval_batch_size / args.per_device_train_batch_size
    batches = InFlight(
        batch_bytes=math.ceil(probe.batch_bytes * (max(1.0, of_evaluation) if evaluates else 1)),
        held=held,
        loaders=1 + evaluates,
    )
    free = free_bytes() // local_ranks()
    if trainer.is_deepspeed_enabled and args.device.type == "cpu" and args.world_size > 1:
        free = max(0, free - DEEPSPEED_BYTES)  # it takes them when training begins
    # The rank with least room decides for all.
    free = int(of_all_ranks(trainer.accelerator, [free]).min())
    room = room_for(workers, ahead, batches, free)
    if not room.why:
        return []
    args.dataloader_num_workers = room.workers
    args.dataloader_prefetch_factor = room.ahead if room.workers else None
    now = f"dataloader_num_workers: {room.workers}"
    now += f", dataloader_prefetch_factor: {room.ahead}" if room.workers else ""
    return [f"{now} for want of shared memory: {room.why}"]
