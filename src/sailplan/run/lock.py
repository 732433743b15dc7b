"""The lock on a run's directory: as long as one process trains there, no other does."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from sailplan.errors import OutputError
from sailplan.processes import ORPHAN_GRACE_S

_LOOK_EVERY_S = 0.2
_TRIES = 3
_held: dict[Path, int] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who trains in a directory."""

    pid: int
    """The first rank's process id; 0 where it is not known."""
    host: str
    """Its machine."""
    launchers: tuple[int, ...]
    """Those that started it, on that machine."""

    @property
    def is_left_behind(self) -> bool:
        """Whether it was started by a process that is gone: then it saves and ends soon."""
        here = self.host == socket.gethostname()
        return here and not all(psutil.pid_exists(pid) for pid in self.launchers)


def hold(path: Path, launchers: Sequence[int]) -> None:
    """Takes the lock for the rest of this process's life.

    Where the file system knows no locks, it is left out.

    Args:
        path: The lock's file; its folder is there.
        launchers: The processes that started this one.

    Raises:
        OutputError: Another process has it.
    """
    if path in _held:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o664)
    try:
        taken = _taken(descriptor)
    except OSError:
        os.close(descriptor)
        return
    if not taken:
        os.close(descriptor)
        raise _refusal(path, _read(path))
    record = {"pid": os.getpid(), "host": socket.gethostname(), "launchers": list(launchers)}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{json.dumps(record)}\n".encode(), 0)
    _held[path] = descriptor


def _taken(descriptor: int) -> bool:
    """Takes the lock; whoever only looks whether it is held has it for a moment, too."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_EVERY_S)
        else:
            return True
    return False


def is_held(path: Path) -> bool | None:
    """Says whether a process somewhere holds the lock; None where it cannot be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)  # and the lock with it
    return False


def holder(path: Path) -> Holder | None:
    """Returns who holds the lock, None where nobody does, or none can be told."""
    return _read(path) if is_held(path) else None


def wait_until_free(path: Path) -> None:
    """Returns when no other process trains in the directory.

    Ranks whose launcher was killed are waited for: they save and end within a minute.

    Args:
        path: The lock's file.

    Raises:
        OutputError: Another process trains there.
    """
    if path in _held:
        return
    deadline = time.monotonic() + 1.25 * ORPHAN_GRACE_S
    told = False
    while (there := holder(path)) is not None:
        if not there.is_left_behind or time.monotonic() > deadline:
            raise _refusal(path, there)
        if not told:
            text = f"waiting for process {there.pid} to end, which a killed launcher left"
            print(text, file=sys.stderr, flush=True)
            told = True
        time.sleep(_LOOK_EVERY_S)


def _read(path: Path) -> Holder:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Holder(
            pid=int(record["pid"]),
            host=str(record["host"]),
            launchers=tuple(map(int, record["launchers"])),
        )
    except (OSError, ValueError, KeyError, TypeError):  # it is being written
        return Holder(pid=0, host="", launchers=())


def _refusal(path: Path, there: Holder) -> OutputError:
    who = f"process {there.pid} on {there.host}" if there.pid else "another process"
    return OutputError(
        f"{who} is training in {path.parent}",
        todo=f"stop it first (touch {path.with_name('STOP')}), or choose another output_dir",
    )
