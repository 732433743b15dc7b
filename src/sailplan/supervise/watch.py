"""What is to be seen of a run while it goes, read anew as its files grow; nothing is sent to it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sailplan.run.metrics import Series
from sailplan.run.paths import RunPaths
from sailplan.supervise.jobs import JobWatch, training_of
from sailplan.supervise.lines import Growing, last_lines
from sailplan.supervise.runs import RunSummary, look_at

_LOG_BYTES = 32 * 2**10
"""What is read of the end of a log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """What one rank last said of itself."""

    rank: int
    step: int
    phase: str
    """What it does."""
    idle_s: float
    """For how long it has made no progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A run at one moment."""

    summary: RunSummary
    records: tuple[dict[str, Any], ...]
    """All records that count, in the order of their steps."""
    new: tuple[dict[str, Any], ...]
    """The records that have come since the last view, as they were written."""
    beats: tuple[Beat, ...]
    """By rank; empty where none are left, or the run has ended."""
    log: tuple[str, ...]
    """The last lines that the first rank has printed."""
    log_file: Path | None

    @property
    def training(self) -> list[dict[str, Any]]:
        """The records of training steps."""
        return [record for record in self.records if "loss" in record]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The records of evaluations."""
        return [record for record in self.records if "eval_loss" in record]


@dataclass(slots=True)
class Watcher:
    """Follows the files of one run."""

    path: Path
    _series: Series = field(default_factory=Series)
    _metrics: Growing = field(init=False)
    _jobs: JobWatch = field(init=False)

    def __post_init__(self) -> None:
        self._jobs = JobWatch(RunPaths(self.path))
        self._metrics = Growing(RunPaths(self.path).metrics_file)

    def look(self) -> View:
        """Returns how the run is now."""
        paths = RunPaths(self.path)
        # The summary first: what ends a run is the last that is written.
        summary = look_at(self.path, self._jobs.look())
        before = self._metrics.num_replaced
        lines = self._metrics.new_lines()
        if self._metrics.num_replaced != before:
            self._series = Series()
        new = [record for line in lines if (record := self._series.add(line)) is not None]
        log_file = _log_of(paths, summary)
        return View(
            summary=summary,
            records=tuple(self._series.records),
            new=tuple(new),
            beats=_beats(paths) if summary.state in ("running", "starting") else (),
            log=tuple(last_lines(log_file, _LOG_BYTES)) if log_file else (),
            log_file=log_file,
        )


def _log_of(paths: RunPaths, summary: RunSummary) -> Path | None:
    """Returns the first rank's log, else the one that was written last, else the job's."""
    first = paths.logs / "rank-0.log"
    if first.is_file():
        return first
    try:
        logs = [(file.stat().st_mtime, file) for file in paths.logs.glob("*.log")]
    except OSError:
        return None
    job = training_of(summary.jobs)
    return max(logs)[1] if logs else Path(job.log) if job is not None else None


def _beats(paths: RunPaths) -> tuple[Beat, ...]:
    found = []
    for file in paths.beats.glob("rank-*.json"):
        try:
            beat = json.loads(file.read_bytes())
            idle_s = max(0.0, time.time() - float(beat["moved_at"]))
            rank, step, phase = int(beat["rank"]), int(beat["step"]), str(beat["phase"])
        except (OSError, ValueError, TypeError, LookupError):
            continue
        found.append(Beat(rank=rank, step=step, phase=phase, idle_s=idle_s))
    return tuple(sorted(found, key=lambda beat: beat.rank))
