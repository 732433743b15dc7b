"""What the ranks tell each other after every step, so that all of them act on it alike.

A signal reaches one rank, a broken image is met by one, a disk fills up under one. If that rank
saved or left on its own, the others would wait for it for ever. So each counts what it met, the
counts are added up over all ranks at the end of the step, and every rank gets the same sums.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sailplan.train.ranks import of_all_ranks

if TYPE_CHECKING:
    from accelerate import Accelerator

Act = Callable[[int, TrainingArguments, TrainerState, TrainerControl], None]
"""Is called on every rank with the sum; may raise, or set the control's flags."""


class Votes(TrainerCallback):
    """Adds up over all ranks, after every step, what each has counted since the last one.

    Args:
        accelerator: The trainer's.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._acts: dict[str, Act] = {}
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def ask(self, subject: str, act: Act) -> None:
        """Has `act` called where any rank counts something; alike on all ranks, before training.

        Args:
            subject: What is counted, a name of its own.
            act: What every rank then does.
        """
        self._acts[subject] = act
        self._counts[subject] = 0

    def cast(self, subject: str, count: int = 1) -> None:
        """Counts something on this rank; from any thread.

        Args:
            subject: One that was asked for.
            count: How much.
        """
        with self._lock:
            self._counts[subject] += count

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Adds up, and has every rank act."""
        self.count_up(args, state, control)

    def count_up(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        """Adds up now; every rank must be at the same place."""
        if not self._acts:
            return
        with self._lock:
            own = list(self._counts.values())
            self._counts = dict.fromkeys(self._counts, 0)
        sums = of_all_ranks(self.accelerator, own).sum(axis=0)
        for act, total in zip(tuple(self._acts.values()), sums.tolist(), strict=True):
            if total:
                act(int(total), args, state, control)
