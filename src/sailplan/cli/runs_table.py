"""Runs as a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from sailplan.sizes import duration, shown_bytes
from sailplan.supervise.runs import RunSummary
from sailplan.supervise.shown import STYLES, console_of, rate, steps, told_jobs
from sailplan.terminal import harmless

_NARROW = 100
"""Below it, only what is asked for most often is shown."""


def print_runs(found: Sequence[RunSummary], root: Path) -> None:
    """Prints how runs stand, and below it in a line each why those that ended did, and their jobs.

    Args:
        found: The runs.
        root: Where they were looked for.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = console_of()
    is_narrow = console.width < _NARROW
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for column in ("step", "loss", "rate", "left", "checkpoint"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in () if is_narrow else ("disk", "launches", "last word"):
        table.add_column(column, justify="right", no_wrap=True)
    now = time.time()
    for one in found:
        cells = (
            steps(one),
            "" if one.loss is None else f"{one.loss:.4g}",
            "" if one.step_s is None else rate(one.step_s),
            "" if one.eta_s is None else duration(one.eta_s),
            "" if one.checkpoint is None else f"{one.checkpoint:,}",
            shown_bytes(one.checkpoints_bytes) if one.checkpoints_bytes else "",
            "" if one.num_starts is None else str(one.num_starts),
            f"{duration(max(1.0, now - one.updated_at))} ago",
        )
        state = Text(one.state, style=STYLES[one.state])
        table.add_row(harmless(name(one, root)), state, *cells[: 5 if is_narrow else 8])
    console.print(table)
    for one in found:
        if one.why and one.state != "new":
            line = Text.assemble((one.state, STYLES[one.state]), f"  {name(one, root)}: {one.why}")
            console.print(Text(harmless(line.plain), spans=line.spans), soft_wrap=True)
        for job in told_jobs(one):
            words = f"{job.kind} {job.job_id}  {name(one, root)}: {job.words}"
            console.print(Text(harmless(words)), soft_wrap=True)


def name(one: RunSummary, root: Path) -> str:
    """Returns what a run is called where `root` is known."""
    relative = str(one.path.relative_to(root))
    return relative if relative != "." else one.path.resolve().name
