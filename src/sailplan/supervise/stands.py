"""In what state a run is, by the files that it keeps."""

from __future__ import annotations

import signal
from typing import Final, Literal

from sailplan.run.lock import is_held
from sailplan.run.paths import RunPaths
from sailplan.run.state import RunState
from sailplan.supervise.alive import why_gone

Standing = Literal[
    "new", "queued", "starting", "running", "finished", "stopped", "failed", "killed", "unknown"
]

ENDED: Final[frozenset[Standing]] = frozenset({"finished", "stopped", "failed", "killed"})
"""Nothing more comes of these until they are started again."""


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
        return "failed", state.why or meaning(state.exit_code or 1)
    return state.state, state.why


def meaning(code: int) -> str:
    """Returns an exit code in words."""
    try:
        return f"exit code {code}, as after {signal.Signals(code - 128).name}"
    except ValueError:
        return f"exit code {code}"
