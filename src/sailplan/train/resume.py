"""Where training goes on: from which checkpoint, and exactly where it stood."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sailplan.checkpoint import layout, manifest
from sailplan.checkpoint.manifest import Manifest
from sailplan.data.ranks import from_first_rank
from sailplan.errors import CheckpointError
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory, begins_anew
from sailplan.run.identity import identity
from sailplan.train.saving.place import Place, read_places
from sailplan.train.say import say

if TYPE_CHECKING:
    from sailplan.train.trainer import Trainer


def checkpoint_of(run: Run) -> Path | None:
    """Returns the checkpoint that a run goes on from, the same on every rank; None to begin.

    Without `resume_from_checkpoint` it is the last whole one of the run's directory, if there is
    any; `false` begins anew and sets aside those that are there; a path names one.

    Raises:
        RunFileError: There is no such checkpoint.
        CheckpointError: There are some, and none is whole.
    """
    directory = RunDirectory.of(run)

    def find() -> str | None:
        if begins_anew(run):
            _set_all_aside(directory)
            return None
        found = directory.named_checkpoint(run)
        if found is not None:
            _check_named(found)
        else:
            found = layout.latest_whole(
                directory.checkpoints(), run=identity(run), say=say, aside=directory.aside
            )
        return str(found) if found else None

    found = from_first_rank(find)
    return Path(found) if found else None


def _set_all_aside(directory: RunDirectory) -> None:
    for checkpoint in directory.checkpoints():
        lies = layout.set_aside(checkpoint, directory.aside)
        say(f"begins anew: {checkpoint.name} lies in {lies} now")


def _check_named(path: Path) -> None:
    """Refuses a checkpoint that a user names, of whatever run, where it is not whole.

    Raises:
        CheckpointError: It is not.
    """
    if not (path / manifest.MANIFEST).is_file():
        say(f"{path} has no {manifest.MANIFEST}: it is taken as it is, unchecked")
        return
    doubt = layout.doubt(path, run=None)
    if doubt is not None:
        raise CheckpointError(f"resume_from_checkpoint: {path}: {doubt}", todo="name another one")


class Resumption(TrainerCallback):
    """Puts a trainer exactly where it stood, beside what transformers' trainer loads itself.

    Args:
        trainer: The trainer.
        checkpoint: What it goes on from.
    """

    def __init__(self, trainer: Trainer, checkpoint: Path) -> None:
        self.trainer, self.checkpoint = trainer, checkpoint
        self.made = _manifest_of(checkpoint)
        self.places = read_places(checkpoint, self.made.world_size) if self.made else []

    @property
    def num_bytes(self) -> int | None:
        """The checkpoint's size; None where it has no manifest."""
        return self.made.num_bytes if self.made else None

    @property
    def same_world(self) -> bool:
        """Whether there are as many ranks as there were."""
        return len(self.places) == int(self.trainer.args.world_size)

    @property
    def place(self) -> Place | None:
        """Where this rank stood, and of another number of ranks what it takes over."""
        if not self.places:
            return None
        if self.same_world:
            rank: int = self.trainer.args.process_index
            return self.places[rank]
        # The loss that is logged is the mean over the ranks.
        mean = sum(place.loss for place in self.places) / len(self.places)
        return replace(self.places[0], loss=mean, stream=None)

    @property
    def workers(self) -> int | None:
        """The processes that loaded a stream's rows, whose place holds for as many alone."""
        place = self.place
        return place.workers if place is not None and place.stream is not None else None

    def place_stream(self, batches: Any) -> None:
        """Puts a stream where it stood.

        Args:
            batches: Its `MicroBatches`, before the first is drawn.

        Raises:
            DataError: It is another stream.
        """
        place = self.place
        if place is not None and place.stream is not None:
            batches.load_state_dict(place.stream)
        elif self.places:
            say(
                f"the stream was read by {len(self.places)} ranks, and now is by "
                f"{self.trainer.args.world_size}: its rows are dealt anew, and as many are passed "
                "over as were seen: some come twice in this pass, and some not at all"
            )

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Takes over what was added up of the loss since it was last logged."""
        place = self.place
        if place is None:
            return
        self.trainer._tr_loss += place.loss
        self.trainer._globalstep_last_logged = place.logged_step
        self.trainer.loss_before = place.logged_loss


def _manifest_of(checkpoint: Path) -> Manifest | None:
    there = (checkpoint / manifest.MANIFEST).is_file()
    return manifest.read(checkpoint) if there else None
