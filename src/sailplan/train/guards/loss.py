"""Leaves out an optimizer step whose loss or gradient is not finite, or ends the run before it.

One NaN that an optimizer has taken is in every weight. transformers only hides it from the log
(`logging_nan_inf_filter`), and DeepSpeed leaves the step out without a word.

A loss that is not finite is made to give gradients that are NaN, on the device, and the sum over
all ranks has them too. So one number that is computed anyway and is the same on every rank, the
norm of the gradient, tells all of them of whatever one of them met; only then do they talk.
See docs/decisions/0022-bad-losses.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sailplan.errors import TrainingError
from sailplan.run.metrics import append_metrics
from sailplan.train.guards.gradients import GradientGuard
from sailplan.train.say import say

if TYPE_CHECKING:
    from sailplan.run.config import Run
    from sailplan.run.directory import RunDirectory
    from sailplan.train.trainer import Trainer

MOST_IN_A_ROW = 10
"""So many steps left out one after another end the run: nothing is learnt any more."""

_NUM_NAMED = 8
_STATE = "left_out_of_mean"
"""Where the trainer's state, and so each checkpoint, has how many were since the last record."""
_TODO = "look at these rows; lower learning_rate, or train in bf16 rather than fp16"


@dataclass(frozen=True, kw_only=True, slots=True)
class BadStep:
    """A step whose loss or gradient was not finite."""

    step: int
    why: str
    """What was not finite, and where."""
    rows: tuple[str, ...]
    """The rows that it may come from: of the micro batches with a bad loss, else of the step."""

    def __str__(self) -> str:
        more = len(self.rows) - _NUM_NAMED
        rows = ", ".join(self.rows[:_NUM_NAMED])
        more_rows = f" and {more} more" if more > 0 else ""
        return f"step {self.step}: {self.why}; its rows: {rows}{more_rows}"


class LossGuard(TrainerCallback):
    """Watches every step of a run.

    Args:
        trainer: The trainer.
        metrics_file: Where a bad step is written down.
        skips: Whether it is left out; else the run ends.
    """

    def __init__(self, trainer: Trainer, metrics_file: Path, *, skips: bool) -> None:
        self.trainer, self.metrics_file, self.skips = trainer, metrics_file, skips
        self._losses: list[torch.Tensor] = []
        self._num_steps = self._num_left_out = 0
        self._bad: BadStep | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Puts itself before the optimizer."""
        self._optimizer, self._in_a_row = optimizer, 0
        stored: Any = state.stateful_callbacks or {}
        self._num_left_out = int(stored.get(_STATE, 0))
        args.logging_nan_inf_filter = False  # it would wait for the device with every micro batch
        self._scales = getattr(optimizer, "scaler", None) is not None
        if self.trainer.is_deepspeed_enabled:
            _let_deepspeed_look(optimizer.optimizer)
            return
        take = optimizer.step

        @wraps(take)  # what marks it: a scheduler warns where a step is not the one it has seen
        def step(*arguments: Any) -> None:
            if not self._scales:  # a scaler leaves it out by itself, and must be told of it
                optimizer._is_overflow = self._bad is not None  # accelerate 1.15 never resets it
                if self._bad is not None:
                    return
            take(*arguments)

        optimizer.step = step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes the sums that a step which is left out must not add to."""
        self._bad, self._losses = None, []
        self._loss_sum = self.trainer._tr_loss.clone()
        metrics = self.trainer._metrics["train"]
        self._num_metrics = {name: len(values) for name, values in metrics.items()}

    def see(self, loss: torch.Tensor) -> torch.Tensor:
        """Returns the loss of a micro batch, so that one that is not finite has such gradients.

        Args:
            loss: As it goes backward; multiplied by one it keeps every bit.
        """
        found = loss.detach()
        self._losses.append(found)
        return loss * torch.where(torch.isfinite(found), 1.0, math.nan).to(loss.dtype)

    def judge(self, norm: Any) -> None:
        """Decides on the step that is about to be taken, or that DeepSpeed has just left out.

        Args:
            norm: Of the whole gradient, alike on all ranks.

        Raises:
            TrainingError: It is not to be left out, or too many were.
        """
        if self.trainer.is_deepspeed_enabled:
            bad = bool(self._optimizer.step_was_skipped)
        else:
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            bad = not math.isfinite(norm)  # the one place that waits for the device
        if not bad:
            self._in_a_row = 0
            return
        step = self.trainer.state.global_step + 1
        found = self._found(step)
        if found is None:  # an overflow of fp16, which its scaler is there for
            return
        self._in_a_row += 1
        if self.trainer.args.process_index == 0:
            record = {"skipped" if self.skips else "stopped": found.why, "rows": list(found.rows)}
            append_metrics(self.metrics_file, {"step": step, **record})
        if not self.skips:
            raise TrainingError(str(found), todo=f"{_TODO}; or leave it out (on_bad_loss: skip)")
        if self._in_a_row == MOST_IN_A_ROW:
            raise TrainingError(f"{MOST_IN_A_ROW} steps in a row are left out; {found}", todo=_TODO)
        self._bad = found
        say(f"left out {found}")

    def _found(self, step: int) -> BadStep | None:
        """Asks all ranks what was not finite; None where it is none of a loss but of its scale."""
        rank, rows = self.trainer.args.process_index, self.trainer.rows
        losses = torch.stack(self._losses).float().tolist()
        own = [(rank, loss, batch.places) for loss, batch in zip(losses, rows, strict=True)]
        every = gather_object(own)
        bad = [one for one in every if not math.isfinite(one[1])]
        if not bad and self._has_scale():
            return None
        if bad:
            on = "" if self.trainer.args.world_size == 1 else " on rank {}"
            whys = [f"the loss is {loss}" + on.format(rank) for rank, loss, _ in bad]
            why = ", ".join(dict.fromkeys(whys))
        else:
            tensors = self._tensors()
            why = "the gradient is not finite, though each loss is"
            why += f" ({tensors})" if tensors else ""
        places = [place for _, _, places in bad or every for place in places]
        return BadStep(step=step, why=why, rows=tuple(places))

    def _has_scale(self) -> bool:
        if not self.trainer.is_deepspeed_enabled:
            return self._scales
        return getattr(self._optimizer.optimizer, "dtype", None) == torch.float16

    def _tensors(self) -> str:
        """Names tensors with such a gradient, in the first steps, in which each is watched."""
        callbacks = self.trainer.callback_handler.callbacks
        watch = next((one for one in callbacks if isinstance(one, GradientGuard)), None)
        return watch.not_finite() if watch else ""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes a step that was left out, out of the sums that are logged."""
        self._num_steps = state.global_step - self.trainer._globalstep_last_logged
        if self._bad is None:
            return
        self._num_left_out += 1
        stored: Any = state.stateful_callbacks
        stored[_STATE] = self._num_left_out
        self.trainer._tr_loss.copy_(self._loss_sum)
        metrics = self.trainer._metrics["train"]
        for name, values in tuple(metrics.items()):
            del values[self._num_metrics.get(name, 0) :]
            if not values:
                del metrics[name]

    def correct(self, logs: dict[str, float]) -> None:
        """Makes a record's loss the mean of the steps that were taken; there may be none.

        Args:
            logs: A record of training, whose loss is divided by all steps.
        """
        if "loss" not in logs or not self._num_left_out:
            return
        taken = self._num_steps - self._num_left_out
        if taken:
            logs["loss"] *= self._num_steps / taken
        else:
            del logs["loss"]
        if not math.isfinite(logs.get("grad_norm", 0.0)):
            del logs["grad_norm"]
        self._num_left_out = 0
        stored: Any = self.trainer.state.stateful_callbacks
        stored.pop(_STATE, None)


def _let_deepspeed_look(optimizer: Any) -> None:
    """Has ZeRO-1 and 2 look at the gradient where a DeepSpeed file switches that off.

    ZeRO-3 always does; where it is not finite, all leave the step out (DeepSpeed 0.19.8).
    """
    unseen = not getattr(optimizer, "compute_grad_norm", True)
    if unseen or getattr(optimizer, "dtype", None) == torch.bfloat16:
        optimizer.check_grad_overflow = True


def guard_losses(run: Run, trainer: Trainer, directory: RunDirectory) -> None:
    """Has every step of a trainer watched, as the run's `on_bad_loss` says."""
    skips = run.get("on_bad_loss") == "skip"
    trainer.loss_guard = LossGuard(trainer, directory.metrics_file, skips=skips)
    trainer.add_callback(trainer.loss_guard)
