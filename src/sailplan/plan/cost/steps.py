"""How many optimizer steps a run takes."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """Counts of one run."""

    per_epoch: int
    """Optimizer steps of one epoch; its last one may have fewer rows."""
    total: int
    """Optimizer steps of the run."""

    @property
    def epochs(self) -> float:
        """Passes over the rows."""
        return self.total / self.per_epoch


def count_steps(
    *,
    rows: int,
    micro_batch: int,
    accumulation: int,
    ranks: int,
    epochs: float,
    max_steps: int = -1,
    drop_last: bool = False,
) -> Steps:
    """Counts as Trainer does of the micro batches that `StepSampler` deals (transformers 5.23).

    What is left of an epoch for less than a step is a step too.

    Args:
        rows: Rows that are trained on, those dropped for their length left out.
        micro_batch: Rows of one micro batch.
        accumulation: Micro batches of one optimizer step.
        ranks: All ranks.
        epochs: `num_train_epochs`.
        max_steps: Where it is above 0, it is the number of steps.
        drop_last: `dataloader_drop_last`.
    """
    of_step = micro_batch * accumulation * ranks
    per_epoch = max(rows // of_step if drop_last else math.ceil(rows / of_step), 1)
    total = max_steps if max_steps > 0 else math.ceil(epochs * per_epoch)
    return Steps(per_epoch=per_epoch, total=total)
