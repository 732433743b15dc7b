"""Counts the rows that broke while training, over all ranks, until they are too many.

A rank's workers leave such a row out of its micro batch and say so (`sailplan.data.batch_rows`).
Here all ranks hear of it at the end of the step, tell it once, and end together where one row more
has broken than `max_bad_samples` allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sailplan.data.batch_rows import BatchRows
from sailplan.errors import DataError
from sailplan.run.metrics import append_metrics
from sailplan.train.say import say

if TYPE_CHECKING:
    from sailplan.run.config import Run
    from sailplan.run.directory import RunDirectory
    from sailplan.train.trainer import Trainer

_SUBJECT = "bad rows"
_STATE = "bad_rows"
"""Where the trainer's state, and so each checkpoint, has the rows that broke so far."""
_NUM_NAMED = 10


class BadRows(TrainerCallback):
    """Hears of rows that were left out; a row that breaks again, in a later epoch, counts once.

    Args:
        trainer: The trainer; its workers leave rows out from now on.
        metrics_file: Where each row is written down.
        most: So many rows may break.
    """

    def __init__(self, trainer: Trainer, metrics_file: Path, most: int) -> None:
        self.trainer, self.metrics_file, self.most = trainer, metrics_file, most
        self.found: dict[str, str] = {}
        self._own: dict[str, str] = {}
        trainer.data_collator.leaves_out = True
        trainer.votes.ask(_SUBJECT, self._count)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Goes on counting where the checkpoint stood."""
        stored: Any = state.stateful_callbacks or {}
        self.found = dict(stored.get(_STATE, {}))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes what was left out of this rank's batches of the step."""
        for batch in self.trainer.rows:
            for place, why in batch.broken:
                if place not in self.found and place not in self._own:
                    self._own[place] = why
                    self.trainer.votes.cast(_SUBJECT)

    def _count(
        self, _: int, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        """Tells of what is new; all ranks at once.

        Raises:
            DataError: There are too many.
        """
        new = dict(gather_object(list(self._own.items())))
        self._own = {}
        for number, (place, why) in enumerate(new.items(), start=len(self.found) + 1):
            if state.is_world_process_zero:
                record = {"step": state.global_step, "bad_row": place, "why": why}
                append_metrics(self.metrics_file, record)
            say(f"left out at step {state.global_step}: {why} ({number} of {self.most} allowed)")
        self.found |= new
        stored: Any = state.stateful_callbacks
        stored[_STATE] = self.found
        if len(self.found) > self.most:
            raise DataError(
                f"{len(self.found)} rows broke while training: {_listed(self.found)}",
                allowed=f"{self.most} (max_bad_samples)",
                todo="put them right, or leave them out of the data, and start the run again",
            )


def _listed(found: Mapping[str, str]) -> str:
    more = len(found) - _NUM_NAMED
    reasons = ", ".join(list(found.values())[:_NUM_NAMED])
    return reasons + (f", and {more} more, all in metrics.jsonl" if more > 0 else "")


def refuse_broken(rows: BatchRows | None) -> None:
    """Ends an evaluation that meets a broken row: over fewer rows, its loss would be another.

    Args:
        rows: Those of a held-out batch.

    Raises:
        DataError: One is broken.
    """
    if rows is not None and rows.broken:
        _, why = rows.broken[0]
        raise DataError(why)


def count_bad_rows(run: Run, trainer: Trainer, directory: RunDirectory) -> None:
    """Has a trainer leave out rows that break, where the run allows any."""
    most = run.get("max_bad_samples")
    if most:
        trainer.add_callback(BadRows(trainer, directory.metrics_file, most))
