"""How many optimizer steps a run takes: transformers' Trainer's own count."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """Counts of one run."""

    micro_batches_per_epoch: int
    """Of each rank."""
    per_epoch: int
    """Optimizer steps of one epoch; its last one may have fewer micro batches."""
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
    """Counts as Trainer and accelerate do (transformers 5.23, accelerate 1.15).

    Batches are cut from all rows and dealt to the ranks; where they do not come out even, rows are
    repeated. What is left of an epoch for fewer than `accumulation` micro batches is a step too.

    Args:
        rows: Rows that are trained on, those dropped for their length left out.
        micro_batch: Rows of one micro batch.
        accumulation: Micro batches of one optimizer step.
        ranks: All ranks.
        epochs: `num_train_epochs`.
        max_steps: Where it is above 0, it is the number of steps.
        drop_last: `dataloader_drop_last`.
    """
    batches = rows // micro_batch if drop_last else math.ceil(rows / micro_batch)
    of_rank = batches // ranks if drop_last else math.ceil(batches / ranks)
    per_epoch = max(math.ceil(of_rank / accumulation), 1)
    total = max_steps if max_steps > 0 else math.ceil(epochs * per_epoch)
    return Steps(micro_batches_per_epoch=of_rank, per_epoch=per_epoch, total=total)
