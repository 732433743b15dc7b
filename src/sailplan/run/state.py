"""How a run stands: the one small file that it keeps of itself, and what that file means.

A launcher says that the run starts, and the first rank keeps the file while it trains. Where the
run ends, whoever knows how writes it down by `ended`: the entry script when its work is done, ranks
that stop or fail, and the launcher, who comes last. A run that is killed writes nothing: its file
goes on saying `running`, and who looks at it must find out (`sailplan.supervise.runs`).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final, Literal, get_args

from sailplan.errors import StoppedError
from sailplan.files import write_atomically
from sailplan.run.paths import RunPaths

State = Literal["starting", "running", "stopped", "finished", "failed"]

STATES: Final[tuple[State, ...]] = get_args(State)

MAX_WHY = 2000
"""Characters of a reason that are kept; the failure report has the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """What a run last said of itself."""

    state: State
    step: int
    """Optimizer steps that are done."""
    max_steps: int
    """Those that there are; 0 where nobody knows yet."""
    why: str = ""
    """Why it ended as it did, in a line; empty where there is nothing to say."""
    exit_code: int | None = None
    """What it ended with; None while it runs."""
    pid: int
    """The first rank's process; the launcher's until there is one."""
    launcher: int | None = None
    """The process that started the ranks and tells how they end; None where there is none."""
    host: str
    """The machine where both are."""
    started_at: float
    """When this launch began to train, or to start, in seconds since 1970."""
    updated_at: float
    """When this was written."""


def read_state(path: Path) -> RunState | None:
    """Returns what a run last said of itself.

    Returns:
        None where there is no file, or where it is not one that `write_state` has written.
    """
    try:
        found = json.loads(path.read_bytes())
        state = RunState(**{field.name: found[field.name] for field in fields(RunState)})
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    whole = (state.step, state.max_steps, state.pid)
    may_miss = (state.exit_code, state.launcher)
    numbers = (state.started_at, state.updated_at)
    is_one = (
        state.state in STATES
        and all(type(value) is int for value in whole)
        and all(type(value) in (int, float) for value in numbers)
        and all(type(value) is str for value in (state.why, state.host))
        and all(type(value) in (int, type(None)) for value in may_miss)
    )
    return state if is_one else None


def text(state: RunState) -> str:
    """Returns what is written of how a run stands."""
    return json.dumps(asdict(state), indent=2) + "\n"


def write_state(path: Path, state: RunState) -> None:
    """Writes how a run stands, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    write_atomically(path, text(state).encode())


def starting(paths: RunPaths, why: str = "") -> RunState:
    """Returns the state of a run that this process, its launcher, is about to start.

    Args:
        paths: The run's; what it did before is kept.
        why: What has become of the launch before, where this one follows from it; where it is
            empty, what this process has said of it stays.
    """
    before = read_state(paths.state_file)
    if before is not None and (before.state, before.pid) == ("starting", os.getpid()):
        why = why or before.why
    return RunState(
        state="starting",
        step=before.step if before else 0,
        max_steps=before.max_steps if before else 0,
        why=_line(why),
        pid=os.getpid(),
        launcher=os.getpid(),
        host=socket.gethostname(),
        started_at=time.time(),
        updated_at=time.time(),
    )


def ended(paths: RunPaths, code: int, why: str = "") -> None:
    """Writes down how a run has ended, in the words of who knows it best: the last who calls.

    A run that has never begun to train has no state, and gets none here: nothing is left of it. It
    never raises where the file cannot be written: the end of the run has a reason of its own.

    Args:
        paths: The run's.
        code: What the run ends with: 0 is finished, `StoppedError`'s is stopped, others failed.
        why: The reason, in a line; where it is empty, one that was written for this end stays.
    """
    before = read_state(paths.state_file)
    if before is None:
        return
    state: State = "failed" if code else "finished"
    if code == StoppedError.exit_code:
        state = "stopped"
    is_of_this_end = before.state in ("starting", "running", state)
    why = _line(why) or (before.why if is_of_this_end else "")
    end = replace(before, state=state, why=why, exit_code=code, updated_at=time.time())
    if state == before.state and (code, why) == (before.exit_code, before.why):
        return
    with contextlib.suppress(OSError):
        write_state(paths.state_file, end)


_kept: list[RunPaths] = []
"""The run that this process is a rank of, once it trains."""


def keep(paths: RunPaths) -> None:
    """Notes on every rank, when training begins, whose end `ended_here` would tell of."""
    _kept[:] = [paths]


def ended_here(code: int, why: str) -> None:
    """Writes down that the run which this process is a rank of has ended, if it has trained.

    It is for ranks that no launcher of ours has started.

    Args:
        code: What this rank ends with.
        why: The reason, in a line.
    """
    for paths in _kept:
        ended(paths, code, why)


def _line(why: str) -> str:
    return " ".join(why.split())[:MAX_WHY]
