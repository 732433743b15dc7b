"""What a rank needs to go on exactly, beside what transformers' trainer saves itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailplan.data.streaming.loader import MicroBatches
from sailplan.errors import CheckpointError
from sailplan.files import write_atomically

if TYPE_CHECKING:
    from sailplan.train.trainer import Trainer


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where one rank stands at the end of a step."""

    loss: float
    """What it has added up since the last record of the loss; transformers begins anew at 0."""
    logged_step: int
    """The step of that record."""
    logged_loss: float
    """What all records before have added up to, for the mean of the whole run."""
    workers: int
    """Processes that load its rows."""
    stream: Mapping[str, Any] | None = None
    """Where its stream stands; see `MicroBatches.state_dict`."""

    @classmethod
    def of(cls, trainer: Trainer) -> Place:
        """Returns where this rank of a trainer stands."""
        loader = trainer.callback_handler.train_dataloader
        rows = getattr(loader, "dataset", None)
        return cls(
            loss=trainer._tr_loss.item(),
            logged_step=trainer._globalstep_last_logged,
            logged_loss=trainer.loss_before + trainer._total_loss_scalar,
            workers=trainer.args.dataloader_num_workers,
            stream=rows.state_dict() if isinstance(rows, MicroBatches) else None,
        )

    def write(self, folder: Path, rank: int) -> None:
        """Writes it into a checkpoint.

        Raises:
            OSError: It cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(_file(folder, rank), (json.dumps(asdict(self)) + "\n").encode())


def read_places(folder: Path, ranks: int) -> list[Place]:
    """Returns the places of the ranks of a checkpoint, empty where it has none.

    Args:
        folder: The checkpoint.
        ranks: How many there were.

    Raises:
        CheckpointError: One of them cannot be read.
    """
    if not _file(folder, 0).is_file():  # another program's checkpoint
        return []
    places = []
    for rank in range(ranks):
        path = _file(folder, rank)
        try:
            places.append(Place(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read ({error})") from error
    return places


def _file(folder: Path, rank: int) -> Path:
    return folder / f"place-rank-{rank}.json"
