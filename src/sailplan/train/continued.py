"""A rank's run as it goes on from its checkpoints, where no launcher has settled it."""

from __future__ import annotations

import dataclasses
import os

from sailplan.checkpoint.manifest import newest
from sailplan.run.config import Run
from sailplan.run.continued import with_batch_of
from sailplan.run.directory import RunDirectory


def settled(run: Run) -> Run:
    """Returns the run with micro batch and accumulation for as many ranks as there are.

    It goes on with the global batch of its checkpoints.

    Raises:
        RunFileError: The global batch does not divide over the ranks.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    directory = RunDirectory.of(run)
    launched = run.source is not None and run.source.absolute() == directory.train_file
    saved = None if launched else newest(directory.goes_on_from(run))
    if saved is not None:
        run, notes = with_batch_of(
            run,
            global_batch=saved.global_batch,
            saved_by=saved.world_size,
            world_size=world_size,
        )
        run = dataclasses.replace(run, notes=(*run.notes, *notes))
    return run.for_world_size(world_size)
