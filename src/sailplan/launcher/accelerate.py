"""`accelerate launch` without the tracebacks of its own: `python -m sailplan.launcher.accelerate`.

The arguments are those of `accelerate launch`, and accelerate's own code carries them out. Only
its end differs: a failed rank has already said what was wrong, so neither torch's report of the
failed child nor accelerate's traceback follows, and the rank's exit code becomes ours. On a signal
no process is left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import psutil

from sailplan.imports import quick_imports
from sailplan.run.failure import Failure, asked_folder, write_failure

PARENT_VARIABLE = "SAILPLAN_LAUNCHER_PARENT"
"""Environment variable with the process id of a launcher that this process must not outlive."""

STOP_TIMEOUT_S = 30.0
"""How long ranks may take to stop before they are killed; torch elastic waits as long."""

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> NoReturn:
    """Runs `accelerate launch` with these arguments and exits as its first failed rank did.

    Args:
        arguments: `launch`, then what `accelerate launch` takes.
    """
    for signum in _STOP_SIGNALS:
        signal.signal(signum, _stop)
    follow_parent()
    received = None
    try:
        code = launch(list(arguments))
    except _Stopped as stopped:
        received = stopped.signum
        code = 128 + received
    for signum in _STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    stop_children(received or signal.SIGTERM)
    sys.stderr.flush()
    # torch's agent may hold threads that wait for ranks which are gone.
    os._exit(code)


class _Stopped(BaseException):  # not an Exception: optional imports would swallow it
    """A signal asked this launcher to stop."""

    def __init__(self, signum: int) -> None:
        self.signum = signal.Signals(signum)


def _stop(signum: int, _frame: FrameType | None) -> NoReturn:
    raise _Stopped(signum)


def launch(arguments: list[str]) -> int:
    """Runs accelerate's launcher in this process and returns the exit code of the whole run."""
    with quick_imports():
        from accelerate.commands.launch import main as accelerate_launch
        from torch.distributed.elastic.multiprocessing import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Its loggers announce each failed child and each signal that is passed on.
    elastic = logging.getLogger("torch.distributed.elastic")
    elastic.addHandler(logging.NullHandler())
    elastic.propagate = False
    sys.argv = ["accelerate-launch", *arguments[1:]]
    try:
        accelerate_launch()
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            note_signal(failure.exitcode, rank, failure.timestamp)
        rank, failure = error.get_first_failure()
        return exit_code(failure.exitcode, rank)
    except subprocess.CalledProcessError as error:
        note_signal(error.returncode, 0, time.time())
        return exit_code(error.returncode, 0)
    except SignalException as error:
        raise _Stopped(error.sigval) from None
    return 0


def exit_code(code: int, rank: int) -> int:
    """Returns a rank's exit code as a shell would, and says so where a signal ended the rank."""
    if code >= 0:
        return code
    if asked_folder() is not None:  # who asked tells
        return 128 - code
    name = signal.Signals(-code).name
    hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
    print(f"error: rank {rank} was ended by {name}{hint}", file=sys.stderr)
    return 128 - code


def note_signal(code: int, rank: int, when: float) -> None:
    """Leaves word of a rank that a signal ended, where whoever started us wants to tell of it."""
    folder = asked_folder()
    if folder is None or code >= 0:
        return
    name = signal.Signals(-code).name
    left = Failure(rank=rank, kind="signal", error=name, exit_code=128 - code, time=when)
    with contextlib.suppress(OSError):
        write_failure(folder, left)


def follow_parent() -> None:
    """Asks the kernel to end this process when the launcher that started it is gone."""
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it went before we asked
        sys.exit(128 + signal.SIGTERM)


def stop_children(signum: signal.Signals) -> None:
    """Signals every process below this one, and kills those that do not stop in time."""
    children = psutil.Process().children(recursive=True)
    for sent, timeout in ((signum, STOP_TIMEOUT_S), (signal.SIGKILL, 5.0)):
        for child in children:
            _signal_if_there(child, sent)
        _, children = psutil.wait_procs(children, timeout=timeout)


def _signal_if_there(child: psutil.Process, signum: signal.Signals) -> None:
    """Signals a process that may have ended meanwhile."""
    try:
        child.send_signal(signum)
    except psutil.NoSuchProcess:
        return


if __name__ == "__main__":
    main(sys.argv[1:])
