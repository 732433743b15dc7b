"""Whether a run that says it runs does so: it cannot tell of its own sudden end."""

from __future__ import annotations

import contextlib
import socket

from sailplan.run.paths import RunPaths
from sailplan.run.state import RunState
from sailplan.sizes import duration

SILENT_S = 300.0
"""A run on another machine that was silent for so long is not believed to run."""

SILENT_START_S = 6 * 3600.0
"""Nor one to start: a launcher says nothing while rows are encoded and weights loaded."""

CLOCKS_S = 60.0
"""So far the clocks of machines, and of one before and after it was set, may differ."""


def is_here(state: RunState) -> bool:
    """Says whether the run's first rank is a process of this machine."""
    return state.host == socket.gethostname()


def lives(state: RunState) -> bool:
    """Says whether the first rank is there, or its launcher, who will tell how it ended.

    To be asked on their machine.
    """
    return any(_lives(pid, state.started_at) for pid in (state.pid, state.launcher) if pid)


def _lives(pid: int, since: float) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(process.create_time() <= since + CLOCKS_S)  # else its number's heir
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def last_word(paths: RunPaths, state: RunState | None) -> float:
    """Returns when a run last wrote something of its progress, in seconds since 1970."""
    times = [state.updated_at] if state else []
    for file in (paths.metrics_file, *paths.beats.glob("rank-*.json")):
        with contextlib.suppress(OSError):
            times.append(file.stat().st_mtime)
    if not times and paths.run_file.is_file():
        times.append(paths.run_file.stat().st_mtime)
    return max(times, default=0.0)


def why_gone(paths: RunPaths, state: RunState, *, held: bool | None, now: float) -> str | None:
    """Says how we know that a run which says it runs or starts does not; None where it may.

    Args:
        paths: The run's.
        state: What it says.
        held: What `run.lock.is_held` says of its lock. A free one proves nothing from another
            machine: there are network file systems where locks are of one machine only.
        now: Seconds since 1970.
    """
    if held:
        return None
    silent_s = now - last_word(paths, state)
    if is_here(state):
        if lives(state):
            return None
        return f"process {state.pid} is gone, its last word came {duration(silent_s)} ago"
    if silent_s < (SILENT_START_S if state.state == "starting" else SILENT_S):
        return None
    return f"no word from {state.host} for {duration(silent_s)}"
