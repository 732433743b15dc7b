"""How runs stand: read from the small files that each keeps, without a word to the run itself."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

from sailplan.checkpoint.layout import quick_latest
from sailplan.run.lock import is_held
from sailplan.run.metrics import Series
from sailplan.run.paths import RunPaths, step_of
from sailplan.run.state import RunState, read_state
from sailplan.supervise.alive import last_word, why_gone
from sailplan.supervise.lines import last_lines

Standing = Literal[
    "new", "starting", "running", "finished", "stopped", "failed", "killed", "unknown"
]

ENDED: Final[frozenset[Standing]] = frozenset({"finished", "stopped", "failed", "killed"})
"""Nothing more comes of these until they are started again."""

TAIL_BYTES = 16 * 2**10
"""What is read of the metrics at first; some thirty records."""
MOST_TAIL_BYTES = 2**20
"""And at most, where there is no loss among them."""

LEVELS = 4
"""So deep runs are looked for."""

_NO_RUNS = ("checkpoint-", ".", "__pycache__", "node_modules", "site-packages")
"""How the names of folders begin that hold no runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """How one run stands."""

    path: Path
    state: Standing
    why: str
    """Why it is in this state, in a line; may be empty."""
    step: int | None
    """Optimizer steps that are done."""
    max_steps: int | None
    loss: float | None
    """The last that was logged."""
    step_s: float | None
    """Seconds of a step, by the last records of this launch."""
    tokens_per_s: float | None
    """The last that was logged."""
    eta_s: float | None
    """Seconds that are left, evaluating and saving as lately; of a run that runs."""
    checkpoint: int | None
    """The step of the last checkpoint that is whole, as far as its files' sizes tell."""
    checkpoints_bytes: int
    """What all its checkpoints take on the disk, those in doubt among them."""
    num_starts: int | None
    """How often it was launched; None where nobody has counted."""
    strategy: str | None
    processes: int | None
    pid: int | None
    host: str | None
    started_at: float | None
    """When its last launch began to train, in seconds since 1970."""
    updated_at: float
    """When anything was last heard of it."""

    def as_dict(self) -> dict[str, Any]:
        """Returns the summary as JSON can hold it; a loss that is no number is null."""
        found = {**asdict(self), "path": str(self.path.absolute())}
        odd = [
            name
            for name, value in found.items()
            if isinstance(value, float) and not math.isfinite(value)
        ]
        return {**found, **dict.fromkeys(odd)}


def is_run(directory: Path) -> bool:
    """Says whether a folder is a run's: a run file alone may be one that somebody wrote."""
    paths = RunPaths(directory)
    marks = (paths.state_file, paths.metrics_file, paths.command_file)
    return paths.run_file.is_file() and any(mark.is_file() for mark in marks)


def find_runs(root: Path) -> list[RunSummary]:
    """Returns how every run under a folder stands, the newest first."""
    found = list(_directories(root, LEVELS, set()))
    # Threads: on a network file system each look waits for several answers.
    with ThreadPoolExecutor(max_workers=8, thread_name_prefix="runs") as pool:
        summaries = list(pool.map(look_at, found))
    return sorted(summaries, key=lambda summary: summary.updated_at, reverse=True)


def _directories(folder: Path, levels: int, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yields the runs in a folder and below it; none lies within another."""
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        if is_run(folder):
            yield folder
            return
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return
    if levels:
        for name in names:
            if not name.startswith(_NO_RUNS):
                yield from _directories(folder / name, levels - 1, seen)


def look_at(directory: Path) -> RunSummary:
    """Returns how a run stands; a file that is missing or broken leaves out what it would say.

    Args:
        directory: The run's.
    """
    now = time.time()
    paths = RunPaths(directory)
    state = read_state(paths.state_file)
    series = latest(paths.metrics_file)
    standing, why = stands(paths, state, trained=bool(series.records), now=now)
    step_s, eta_s = pace(series, state, now=now)
    losses = [record for record in series.records if "loss" in record]
    checkpoints = paths.checkpoints()
    last = quick_latest(checkpoints)
    launched = _environment(paths.environment_file)
    return RunSummary(
        path=directory,
        state=standing,
        why=why,
        step=steps_done(series, state),
        max_steps=(state.max_steps or None) if state else None,
        loss=_number(losses[-1].get("loss")) if losses else None,
        step_s=step_s,
        tokens_per_s=_number(losses[-1].get("tokens_per_s")) if losses else None,
        eta_s=eta_s if standing == "running" else None,
        checkpoint=step_of(last) if last else None,
        checkpoints_bytes=sum(map(_size, [*checkpoints, paths.aside])),
        num_starts=_num_starts(paths, goes_on=standing not in ENDED - {"killed"}),
        strategy=launched.get("strategy"),
        processes=launched.get("processes"),
        pid=state.pid if state else None,
        host=state.host if state else None,
        started_at=state.started_at if state else None,
        updated_at=last_word(paths, state),
    )


def stands(
    paths: RunPaths, state: RunState | None, *, trained: bool, now: float
) -> tuple[Standing, str]:
    """Returns in what state a run is, and why.

    Args:
        paths: The run's.
        state: What it last said of itself.
        trained: Whether it has metrics.
        now: Seconds since 1970.
    """
    held = is_held(paths.lock_file)
    if state is None:
        if held:
            return "running", "its state.json is missing or broken"
        if trained:
            return "unknown", "its state.json is missing or broken"
        return "new", "it has not begun to train"
    if state.state in ("starting", "running"):
        why = why_gone(paths, state, held=held, now=now)
        return (state.state, state.why) if why is None else ("killed", why)
    if state.state == "failed":
        return "failed", state.why or _meaning(state.exit_code or 1)
    return state.state, state.why


def _meaning(code: int) -> str:
    """Returns an exit code in words."""
    try:
        return f"exit code {code}, as after {signal.Signals(code - 128).name}"
    except ValueError:
        return f"exit code {code}"


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
    return _number(record.get("time")) or 0.0


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _environment(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    kinds = {"strategy": str, "processes": int}
    return {name: found[name] for name, kind in kinds.items() if isinstance(found.get(name), kind)}


def _num_starts(paths: RunPaths, *, goes_on: bool) -> int | None:
    """Returns how often a run was launched; a launch is written down at its end."""
    try:
        return paths.attempts_file.read_bytes().count(b"\n") + goes_on
    except OSError:
        return None


def _size(folder: Path) -> int:
    """Returns the bytes of the files in a folder and below it; links are not followed."""
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    total += _size(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    except OSError:
        pass
    return total
