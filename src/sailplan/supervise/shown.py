"""How runs are written for users, in a list and on a screen of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sailplan.supervise.runs import RunSummary, Standing

if TYPE_CHECKING:
    from rich.console import Console

STYLES: dict[Standing, str] = {
    "new": "dim",
    "starting": "cyan",
    "running": "bold green",
    "finished": "default",
    "stopped": "yellow",
    "failed": "bold red",
    "killed": "bold red",
    "unknown": "dim",
}
_PLAIN_WIDTH = 120


def steps(one: RunSummary) -> str:
    """Returns how far a run is."""
    if one.step is None:
        return ""
    return f"{one.step:,}" if one.max_steps is None else f"{one.step:,} of {one.max_steps:,}"


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
