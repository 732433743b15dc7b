"""What a run gets done per second, counted over all ranks and said with every log record.

The clock runs while steps run: from the asking for a step's batches to the step's end, and where it
is logged, to its logging, when the GPU has caught up. Evaluation, saving and what loading takes
until the first batch is there lie between. `docs/throughput.md` says what each number means.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import astuple, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sailplan.data.counts import COUNTS, BatchCounts
from sailplan.hardware.catalogue import of_driver
from sailplan.plan.measured import WORTH_TELLING
from sailplan.train.data_wait import Loading, Waited, explain
from sailplan.train.model_flops import ModelFlops, model_flops
from sailplan.train.ranks import of_all_ranks
from sailplan.train.say import say

if TYPE_CHECKING:
    from accelerate import Accelerator

RATES = (
    "tokens_per_s",
    "trained_tokens_per_s",
    "samples_per_s",
    "images_per_s",
    "padding_share",
    "data_wait_share",
    "mfu",
    "num_tokens",
)
"""What a record of training has, where it is known and the run has any."""

_COLUMNS = ("waited_s", "epoch_began_s", *(field.name for field in fields(BatchCounts)))
"""What each rank tells the others; `epoch_began_s` is waiting for the first batch of an epoch."""

FEW_STEPS = 10
"""Steps over which waiting is judged; one alone may wait by chance."""

NOTICED_S = 1.0
"""Until so much was lost, nobody minds."""


class Throughput(TrainerCallback):
    """Counts batches and time, and tells where steps wait for data.

    Args:
        accelerator: The trainer's.
        flops: What the model needs.
        peak_flops: What this rank's card can do at most; None where that is not known.
        loading: How batches come about.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        flops: ModelFlops,
        peak_flops: float | None,
        loading: Loading,
    ) -> None:
        self.accelerator, self.flops, self.loading = accelerator, flops, loading
        self.peak_flops = peak_flops
        self._begin(0)

    def _begin(self, step: int) -> None:
        self._began: float | None = None
        self._ended = self._window_s = self._total_s = self._total_waited_s = 0.0
        self._own = np.zeros(len(_COLUMNS))
        self._window = np.zeros((self.accelerator.num_processes, len(_COLUMNS)))
        self._judged, self._judged_s, self._judged_step = np.zeros_like(self._window), 0.0, step
        self._told_share = 0.0
        self._peaks = np.nan
        self._sees_images = self._epoch_begins = False

    @property
    def waiting_share(self) -> float:
        """The part of this rank's time so far that was waiting for data."""
        total = self._total_s + (self._ended - self._began if self._began else 0.0)
        return self._total_waited_s / total if total else 0.0

    def watch(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yields the batches of a step without their counts, which are noted with the wait.

        Args:
            batches: The DataLoader's iterator.
        """
        self._count_time(time.perf_counter())
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            came = time.perf_counter()
            if batch is None:
                return
            if self._began is None:  # until now workers were started, and batches passed over
                self._began = self._ended = came
            else:
                self._own[0] += came - asked
                self._own[1] += came - asked if self._epoch_begins else 0.0
                self._total_waited_s += came - asked
            self._epoch_begins = False
            counts = batch.pop(COUNTS, None)
            if counts is not None:
                self._own[2:] += astuple(counts)
            yield batch

    def _count_time(self, begins: float) -> None:
        """Counts the time that has run until it was stopped, and lets it run from `begins`."""
        if self._began is not None:
            self._window_s += self._ended - self._began
            self._total_s += self._ended - self._began
            self._began = self._ended = begins

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins to count, and learns what the cards of all ranks can do together."""
        self._begin(state.global_step)
        peak = np.nan if self.peak_flops is None else self.peak_flops
        self._peaks = float(of_all_ranks(self.accelerator, [peak]).sum())

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes that workers start anew."""
        self._epoch_begins = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops the time, and adds up all ranks where their sums will be asked for."""
        self._ended = time.perf_counter()
        self._add_up(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Adds up all ranks where an epoch ends with a record or a checkpoint."""
        self._add_up(args, state, control)

    def _add_up(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        asked = (control.should_log, control.should_save, control.should_evaluate)
        if not any((*asked, control.should_training_stop)):
            return
        ranks = of_all_ranks(self.accelerator, self._own.tolist())
        self._own[:] = 0.0
        self._window += ranks
        if args.include_num_input_tokens_seen == "no":
            # It is in the checkpoint, so that a run that goes on counts on.
            state.num_input_tokens_seen += int(ranks[:, _COLUMNS.index("tokens")].sum())

    def add_to(self, logs: dict[str, float], args: TrainingArguments, state: TrainerState) -> None:
        """Adds to a record of training what was done since the last one; to others, nothing.

        Args:
            logs: The record, before any callback sees it.
            args: The trainer's arguments.
            state: The trainer's state.
        """
        if "loss" not in logs and "train_runtime" not in logs:
            return
        if args.include_num_input_tokens_seen == "no":
            logs["num_tokens"] = state.num_input_tokens_seen
        if "loss" in logs and self._began is not None:
            self._ended = time.perf_counter()
            self._count_time(self._ended)
            logs.update(self._rates())
            self._judge(state)
            self._window_s = 0.0
            self._window[:] = 0.0

    def _rates(self) -> dict[str, float]:
        counts = _named(self._window.sum(axis=0))
        self._sees_images |= counts["images"] > 0
        return rates(
            counts,
            seconds=self._window_s,
            waited_s=float(self._window[:, 0].max()),
            images=self._sees_images,
            mfu=self.flops.of(counts) / (self._window_s * self._peaks),
        )

    def _judge(self, state: TrainerState) -> None:
        """Tells once that steps wait for data, and again only where they wait twice as long."""
        self._judged += self._window
        self._judged_s += self._window_s
        steps = state.global_step - self._judged_step
        if steps < FEW_STEPS and state.global_step < state.max_steps:
            return
        slowest = self._judged[self._judged[:, 0].argmax()]
        waited = Waited(
            first_step=self._judged_step + 1,
            last_step=state.global_step,
            seconds=self._judged_s,
            waited_s=float(slowest[0]),
            epoch_began_s=float(slowest[1]),
            counts=_named(slowest),
        )
        if waited.share > max(WORTH_TELLING, 2 * self._told_share):
            if waited.waited_s < NOTICED_S:
                return  # what follows is judged together with it
            self._told_share = waited.share
            say(explain(waited, self.loading))
        self._judged[:], self._judged_s, self._judged_step = 0.0, 0.0, state.global_step


def _named(sums: np.ndarray) -> dict[str, float]:
    return dict(zip(_COLUMNS, sums.tolist(), strict=True))


def rates(
    counts: Mapping[str, float], *, seconds: float, waited_s: float, images: bool, mfu: float
) -> dict[str, float]:
    """Returns the metrics of some steps, by the names that they have in the logs.

    Args:
        counts: Fields of `BatchCounts`, added up over all ranks.
        seconds: What the steps took.
        waited_s: Of it, waiting for data, on the rank that waited longest.
        images: Whether the run has images.
        mfu: Of what the cards could have computed, what the model needed; NaN where not known.
    """
    found = {
        "tokens_per_s": counts["tokens"] / seconds,
        "trained_tokens_per_s": counts["trained"] / seconds,
        "samples_per_s": counts["samples"] / seconds,
        "images_per_s": counts["images"] / seconds,
        "padding_share": counts["padding"] / max(1.0, counts["tokens"] + counts["padding"]),
        "data_wait_share": min(1.0, waited_s / seconds),
        "mfu": mfu,
    }
    if not images:
        del found["images_per_s"]
    if np.isnan(mfu):
        del found["mfu"]
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def throughput_of(trainer: Any, loading: Loading) -> Throughput:
    """Returns what counts a trainer's batches, once what trains of its model is settled.

    Args:
        trainer: The trainer.
        loading: How its batches come about.
    """
    return Throughput(
        trainer.accelerator,
        flops=model_flops(trainer.model),
        peak_flops=card_peak(trainer.args, trainer.model.dtype),
        loading=loading,
    )


def card_peak(args: TrainingArguments, dtype: torch.dtype) -> float | None:
    """Returns the FLOP/s that this rank's card can do at most in the dtype that it trains in.

    Args:
        args: The trainer's arguments.
        dtype: The model's.

    Returns:
        None on a CPU, for a card that the catalogue does not have, and for TF32, which it does
        not list.
    """
    if args.device.type != "cuda":
        return None
    card = of_driver(torch.cuda.get_device_name(args.device))
    name = str(dtype).removeprefix("torch.")
    name = "bfloat16" if args.bf16 else "float16" if args.fp16 else name
    if card is None or (name == "float32" and args.tf32):
        return None
    return card.peak_flops(name)
