"""Compares the first steps of a run with its plan: peak memory and rate, logged and kept."""

from __future__ import annotations

import time
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sailplan.errors import OutputError
from sailplan.files import write_atomically
from sailplan.hardware.catalogue import of_driver
from sailplan.plan.measured import Measured
from sailplan.plan.record import Plan, read_plan
from sailplan.run.directory import RunDirectory
from sailplan.train.throughput import Throughput

MEASURED_STEPS = 10
"""Steps that are timed, behind the first, which warms up."""


class FirstSteps(TrainerCallback):
    """Measures the first steps on every rank, and writes both numbers on the first.

    Args:
        directory: Where the plan lies, if there is one, and where the record goes.
        throughput: Knows how much of the steps was waiting for data.
    """

    def __init__(self, directory: RunDirectory, throughput: Throughput | None = None) -> None:
        self.directory, self.throughput = directory, throughput
        self.ended: list[float] = []
        self.done = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forgets what loading took."""
        if torch.cuda.is_available() and args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes the time; behind the last of the first steps, compares."""
        if self.done:
            return
        self.ended.append(time.monotonic())
        if len(self.ended) > MEASURED_STEPS:
            self._compare(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compares what there is of a run that was shorter."""
        if not self.done:
            self._compare(args, state)

    def _compare(self, args: TrainingArguments, state: TrainerState) -> None:
        self.done = True
        on_gpu = args.device.type == "cuda"
        peaks = _largest_of_all_ranks(args.device) if on_gpu else None
        if not state.is_world_process_zero or len(self.ended) < 2:
            return
        plan = plan_of(self.directory)
        if plan is None:
            return
        waited = self.throughput.waiting_share if self.throughput else 0.0
        found = measure(args, plan, peaks, self.ended, waiting_share=waited)
        print(found.words(), flush=True)
        write_atomically(self.directory.measured_file, found.text().encode())


def measure(
    args: TrainingArguments,
    plan: Plan,
    peaks: tuple[int, int] | None,
    ended: list[float],
    *,
    waiting_share: float = 0.0,
) -> Measured:
    """Returns the record of some steps.

    Args:
        args: The arguments of the run.
        plan: Its plan.
        peaks: Active and reserved bytes at their highest; None where there is no GPU.
        ended: When each step ended, in seconds; two at least.
        waiting_share: The part of their time that was waiting for data.
    """
    device = torch.cuda.get_device_name() if peaks else "cpu"
    model = of_driver(device) if peaks else None
    rows = args.per_device_train_batch_size
    same_gpu = model is not None and model.name == plan.card.gpu
    same_batch = (rows, args.world_size) == (plan.chosen.micro_batch, plan.chosen.ranks)
    return Measured(
        device=device,
        steps=len(ended) - 1,
        step_s=median(after - before for before, after in pairwise(ended)),
        planned_step_s=plan.chosen.time.step_s,
        active_bytes=peaks[0] if peaks else None,
        reserved_bytes=peaks[1] if peaks else None,
        planned_bytes=plan.chosen.memory.peak_bytes,
        comparable=same_gpu and same_batch,
        waiting_share=round(waiting_share, 4),
    )


def _largest_of_all_ranks(device: torch.device) -> tuple[int, int]:
    """Returns the active and the reserved peak of the rank that needed most."""
    peaks = torch.tensor(
        [torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()],
        dtype=torch.float64,
        device=device,
    )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(peaks, op=torch.distributed.ReduceOp.MAX)
    active, reserved = peaks.tolist()
    return int(active), int(reserved)


def plan_of(directory: RunDirectory) -> Plan | None:
    """Returns the plan of the run; None where it has none, or one of another version."""
    path = directory.plan_file
    try:
        return read_plan(path) if path.is_file() else None
    except OutputError:
        return None
