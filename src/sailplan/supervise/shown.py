"""How runs are written for users, in a list and on a screen of their own."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from sailplan.slurm.standing import JobStanding
from sailplan.supervise.jobs import training_of
from sailplan.supervise.runs import RunSummary
from sailplan.supervise.stands import Standing

if TYPE_CHECKING:
    from rich.console import Console

STYLES: dict[Standing, str] = {
    "new": "dim",
    "queued": "cyan",
    "starting": "cyan",
    "running": "bold green",
    "finished": "default",
    "stopped": "yellow",
    "failed": "bold red",
    "killed": "bold red",
    "unknown": "dim",
}
_PLAIN_WIDTH = 120
_ON_THEIR_WAY = ("starting", "running")


def steps(one: RunSummary) -> str:
    """Returns how far a run is."""
    if one.step is None:
        return ""
    return f"{one.step:,}" if one.max_steps is None else f"{one.step:,} of {one.max_steps:,}"


def again_by(one: RunSummary) -> str:
    """Returns the command that goes on with a run that has ended: where its last launch was."""
    verb = "submit" if training_of(one.jobs) is not None else "train"
    return f"sailplan {verb} {shlex.quote(str(one.path))}"


def told_jobs(one: RunSummary) -> list[JobStanding]:
    """Returns the jobs of a run that are worth a line beside its own: all that is not yet done.

    Of a run that waits, the run's own line tells of its training job; so does that of one that has
    ended.
    """
    unsaid = [job for job in one.jobs if job.kind != "train" or one.state in _ON_THEIR_WAY]
    return unsaid if any(job.state != "finished" for job in unsaid) else []


def rate(step_s: float) -> str:
    """Returns the pace of steps, in the unit that suits it."""
    return f"{1 / step_s:.1f} step/s" if step_s < 0.5 else f"{step_s:.3g} s/step"


def console_of() -> Console:
    """Returns the console of standard output; without a terminal it is wide, unless COLUMNS is."""
    import os

    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = _PLAIN_WIDTH
    return console
