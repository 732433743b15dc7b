"""A lock around work that one process does, while others wait for it without end."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from sailplan.progress import PLAIN_LINE_EVERY_S

_LOOK_EVERY_S = 0.2


@contextmanager
def one_process(path: Path, *, told: str = "") -> Iterator[None]:
    """Keeps other processes out that name the same path, and waits for one that is in.

    A process that was killed lets the next one in. Where there can be no lock beside the path, as
    on some network file systems, a user's processes on this machine alone keep each other out.

    Args:
        path: What the work is on; the lock lies beside it.
        told: Is printed where the wait is long.

    Raises:
        OSError: The lock cannot be made.
    """
    try:
        lock = _acquired(Path(f"{path}.lock"), told)
    except (NotImplementedError, OSError):
        lock = _acquired(Path(tempfile.gettempdir()) / f"{path.name}.{os.getuid()}.lock", told)
    try:
        yield
    finally:
        lock.release()


def _acquired(path: Path, told: str) -> filelock.BaseFileLock:
    lock = filelock.FileLock(path, mode=0o664)  # colleagues may share the cache
    try:
        lock.acquire(timeout=PLAIN_LINE_EVERY_S if told else -1, poll_interval=_LOOK_EVERY_S)
    except filelock.Timeout:
        print(told, file=sys.stderr, flush=True)
        lock.acquire(timeout=-1, poll_interval=_LOOK_EVERY_S)
    return lock
