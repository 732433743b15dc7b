"""How runs stand: read from the small files that each keeps, without a word to the run itself."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sailplan.checkpoint.layout import quick_latest
from sailplan.run.paths import RunPaths, step_of
from sailplan.run.state import read_state
from sailplan.slurm.standing import JobStanding, look_up_all, read_chain, standings
from sailplan.supervise.alive import last_word
from sailplan.supervise.jobs import beside_files, training_of
from sailplan.supervise.pace import latest, number, pace, steps_done
from sailplan.supervise.stands import ENDED, Standing, stands

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
    jobs: tuple[JobStanding, ...] = ()
    """Its jobs in Slurm, in their order; none where it was not submitted."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it until somebody starts it again."""
        job = training_of(self.jobs)
        return self.state in ENDED and (
            self.state == "finished" or job is None or job.state not in ("waiting", "running")
        )

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
    has_begun = paths.run_file.is_file() and any(mark.is_file() for mark in marks)
    return has_begun or paths.jobs.is_dir()


def find_runs(root: Path) -> list[RunSummary]:
    """Returns how every run under a folder stands, the newest first.

    Slurm is asked once for all of them, and not where none has jobs.
    """
    found = list(_directories(root, LEVELS, set()))
    # Threads: on a network file system each look waits for several answers.
    with ThreadPoolExecutor(max_workers=8, thread_name_prefix="runs") as pool:
        chains = list(pool.map(read_chain, map(RunPaths, found)))
        jobs = map(partial(standings, lookup=look_up_all(chains)), chains)
        summaries = list(pool.map(look_at, found, jobs))
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


def look_at(directory: Path, jobs: tuple[JobStanding, ...] | None = None) -> RunSummary:
    """Returns how a run stands; a file that is missing or broken leaves out what it would say.

    Args:
        directory: The run's.
        jobs: How its jobs stand; where not given, Slurm is asked if it has any.
    """
    now = time.time()
    paths = RunPaths(directory)
    if jobs is None:
        chain = read_chain(paths)
        jobs = standings(chain, look_up_all([chain]))
    state = read_state(paths.state_file)
    series = latest(paths.metrics_file)
    by_files = stands(paths, state, trained=bool(series.records), now=now)
    standing, why = beside_files(paths, state, by_files, jobs)
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
        loss=number(losses[-1].get("loss")) if losses else None,
        step_s=step_s,
        tokens_per_s=number(losses[-1].get("tokens_per_s")) if losses else None,
        eta_s=eta_s if standing == "running" else None,
        checkpoint=step_of(last) if last else None,
        checkpoints_bytes=sum(map(_size, [*checkpoints, paths.aside])),
        num_starts=_num_starts(paths, goes_on=standing not in ENDED - {"killed"} | {"queued"}),
        strategy=launched.get("strategy"),
        processes=launched.get("processes"),
        pid=state.pid if state else None,
        host=state.host if state else None,
        started_at=state.started_at if state else None,
        updated_at=max([last_word(paths, state), *(job.submitted_at for job in jobs)]),
        jobs=jobs,
    )


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
