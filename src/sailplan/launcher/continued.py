"""What a launch takes over from the checkpoints of its run where other ranks saved them."""

from __future__ import annotations

import dataclasses
from typing import cast

from sailplan.checkpoint.manifest import Manifest, newest
from sailplan.hardware.detect import Machine
from sailplan.launcher.planned import asked_strategy
from sailplan.launcher.preset import named_preset
from sailplan.launcher.strategy import divide
from sailplan.run.blocks import Strategy
from sailplan.run.config import Run
from sailplan.run.continued import with_batch_of
from sailplan.run.directory import RunDirectory


def continued(run: Run, machine: Machine) -> tuple[Run, tuple[str, ...]]:
    """Returns a run as it goes on from its checkpoints, and what is to be told of it.

    On other ranks than before it keeps the samples of an optimizer step, and the strategy where
    the run file leaves it open: ZeRO's states load under ZeRO alone.

    Args:
        run: The run, as it is asked for.
        machine: This machine.

    Raises:
        SailplanError: The run does not fit the machine, or its batch not the ranks.
    """
    directory = RunDirectory.of(run)
    saved = newest(directory.goes_on_from(run))
    if saved is None:
        return run, ()
    ranks = divide(run, machine).processes
    notes: tuple[str, ...] = ()
    if ranks != saved.world_size and asked_strategy(run)[0] is None:
        strategy = _strategy(saved, directory, ranks)
        run = dataclasses.replace(run, launch=run.launch.model_copy(update={"strategy": strategy}))
        notes = (f"strategy {strategy}: the run goes on as it was saved",)
        ranks = divide(run, machine).processes
    run, kept = with_batch_of(
        run, global_batch=saved.global_batch, saved_by=saved.world_size, world_size=ranks
    )
    return run, (*notes, *kept)


def _strategy(saved: Manifest, directory: RunDirectory, ranks: int) -> Strategy:
    """Returns the strategy that loads what was saved."""
    if saved.strategy in ("single", "ddp"):  # both save the same
        return "ddp" if ranks > 1 else "single"
    file, offload = directory.accelerate_file, named_preset("zero3_offload")
    last = file.read_text(encoding="utf-8") if file.is_file() else ""
    if saved.strategy == "zero3" and last == offload.text:
        return "zero3_offload"
    return cast(Strategy, saved.strategy)
