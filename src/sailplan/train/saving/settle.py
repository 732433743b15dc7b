"""Has a trainer save as `saving` does, and go on exactly where its checkpoint stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sailplan.run.config import Run
from sailplan.train.resume import Resumption
from sailplan.train.saving.saver import Saver

if TYPE_CHECKING:
    from sailplan.train.trainer import Trainer


def settle_saving(run: Run, trainer: Trainer, checkpoint: Path | None) -> None:
    """Gives a trainer what stands around its saves, and what it takes over.

    Args:
        run: The run.
        trainer: Its trainer, before training.
        checkpoint: What it goes on from.
    """
    trainer.save_sharded = bool(run.get("save_sharded"))
    if checkpoint is not None:
        trainer.resumption = Resumption(trainer, checkpoint)
        trainer.add_callback(trainer.resumption)
    trainer.saver = Saver(run, trainer, trainer.resumption)
    trainer.add_callback(trainer.saver)
