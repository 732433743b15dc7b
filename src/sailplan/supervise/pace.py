"""How far and how fast a run is, by the last records of its metrics."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from sailplan.run.metrics import Series
from sailplan.run.state import RunState
from sailplan.supervise.lines import last_lines

TAIL_BYTES = 16 * 2**10
"""What is read of the metrics at first; some thirty records."""
MOST_TAIL_BYTES = 2**20
"""And at most, where there is no loss among them."""


def latest(metrics_file: Path) -> Series:
    """Returns the last records of a run, with a loss where there is one near the end."""
    num_bytes = TAIL_BYTES
    while True:
        series = Series()
        lines = last_lines(metrics_file, num_bytes)
        for line in lines:
            series.add(line)
        if any("loss" in record for record in series.records) or num_bytes >= MOST_TAIL_BYTES:
            return series
        if sum(map(len, lines)) + len(lines) < num_bytes // 2:  # that was the whole file
            return series
        num_bytes *= 4


def steps_done(series: Series, state: RunState | None) -> int | None:
    """Returns how many steps are done, by the newer of both files."""
    newest = series.records[-1] if series.records else series.resumed
    if newest is None:
        return state.step if state else None
    if state is None or _time(newest) > state.updated_at:
        return int(newest["step"])
    return state.step


def pace(
    series: Series, state: RunState | None, *, now: float
) -> tuple[float | None, float | None]:
    """Returns the seconds of a step, and those that are left.

    A step is as long as most of the last ones were; what is left has its share of what came between
    them, evaluations and saves.

    Args:
        series: The last records.
        state: What the run last said of itself.
        now: Seconds since 1970.
    """
    points = [
        (_time(record), record["step"]) for record in series.of_this_launch if "loss" in record
    ]
    if state is not None:
        if state.state == "running" and (not points or state.step > points[-1][1]):
            points.append((state.updated_at, state.step))
        if len(points) == 1:
            began = series.resumed["step"] if series.resumed else 0
            points.insert(0, (state.started_at, began))
    steps = [(t - s, b - a) for (s, a), (t, b) in pairwise(points) if b > a and t > s]
    if not steps:
        return None, None
    step_s = median(seconds / count for seconds, count in steps)
    if state is None:
        return step_s, None
    (first, first_step), (last, last_step) = points[0], points[-1]
    mean_s = (last - first) / max(1, last_step - first_step)
    left_s = mean_s * (state.max_steps - last_step) - (now - last)
    return step_s, max(0.0, left_s)


def _time(record: dict[str, Any]) -> float:
    return number(record.get("time")) or 0.0


def number(value: object) -> float | None:
    """Returns a number of a record; None where it is something else."""
    return float(value) if isinstance(value, (int, float)) else None
