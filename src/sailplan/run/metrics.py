"""The metrics of a run: a line a record, read as one series whatever was stopped in between."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class GoingOn:
    """One place where a launch went on with training."""

    step: int
    """The optimizer step it went on from."""
    reached: int
    """The last step logged before; what lies between was given up, and done again."""
    time: float
    """When, in seconds since 1970; 0 where the record does not say."""


@dataclass(slots=True)
class Series:
    """The records of a metrics file in the order of their steps, a line at a time.

    A line `{"step": N, "resumed": true, …}` says that training went on from step N: what was
    written before it of later steps is of a try that was given up, and is left out. So is a line
    that was cut off, and one that is no record.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    """What counts of the lines so far."""
    going_on: list[GoingOn] = field(default_factory=list)
    """Where launches after the first went on, in their order."""
    resumed: dict[str, Any] | None = None
    """The record of where the last launch went on; None for a first launch."""
    num_earlier: int = 0
    """How many of the records are of launches before the last."""

    def add(self, line: str) -> dict[str, Any] | None:
        """Takes the next line; returns its record, None where it is none."""
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            return None
        if record.get("resumed"):
            reached = max((old["step"] for old in self.records), default=0)
            began = record.get("time")
            time_s = began if isinstance(began, float) else 0.0
            self.going_on.append(GoingOn(step=record["step"], reached=reached, time=time_s))
            self.records = [old for old in self.records if old["step"] <= record["step"]]
            self.resumed, self.num_earlier = record, len(self.records)
        else:
            self.records.append(record)
        return record

    @property
    def of_this_launch(self) -> list[dict[str, Any]]:
        """The records since the run was last started."""
        return self.records[self.num_earlier :]


def read_series(path: Path) -> Series:
    """Returns what a run's metrics file holds; nothing where there is no such file."""
    series = Series()
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return series
    for line in lines:
        series.add(line)
    return series


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a run's metrics file, in the order of their steps; see `Series`."""
    return read_series(path).records


def append_metrics(path: Path, record: dict[str, Any]) -> None:
    """Appends a record to a run's metrics file, with the wall time; for the first rank alone.

    Args:
        path: The file.
        record: What JSON can hold, with its `step`.
    """
    line = json.dumps({**record, "time": round(time.time(), 3)})
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
