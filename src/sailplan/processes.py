"""Processes that ask each other to stop, and that do not outlive one another.

A launcher, accelerate's process and each rank stand in a chain: whoever starts a process leaves
its own id in `LAUNCHERS_VARIABLE`, and the kernel tells a process when the one above it is gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import psutil

from sailplan.errors import StoppedError

LAUNCHERS_VARIABLE = "SAILPLAN_LAUNCHERS"
"""Environment variable with the process ids of those that started this one, the nearest last."""

ORPHAN_GRACE_S = 60.0
"""How long what a killed launcher leaves behind may go on, to save and to end."""

LOOK_EVERY_S = 1.0
"""How often a process looks whether the one above it is still there."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""What asks for a clean stop."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl_of_linux() -> Callable[[int, int], int] | None:
    return ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None


_prctl = _prctl_of_linux()
"""Looked up ahead: a process that was just forked may not load libraries safely."""


class Asked(KeyboardInterrupt):
    """A signal asked this process to stop while it has nothing to save.

    Libraries let a `KeyboardInterrupt` through, and clean up.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


def stopped_before_training(cause: str) -> StoppedError:
    """Returns what is said of a run that was asked to stop before it had anything to save."""
    return StoppedError(f"stopped before training began, as asked ({cause})")


def heeded_signals() -> list[signal.Signals]:
    """Returns the stop signals that this process does not ignore, as `nohup` has it do."""
    return [one for one in STOP_SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]


@contextmanager
def stops_at_once(said: str = "") -> Iterator[None]:
    """Ends the work inside at the first stop signal; for work that leaves nothing to save.

    Args:
        said: What is said of it then; that training has not begun where not given.

    Raises:
        StoppedError: A signal came.
    """

    def stop(signum: int, _frame: FrameType | None) -> NoReturn:
        raise Asked(signal.Signals(signum).name)

    previous = {number: signal.signal(number, stop) for number in heeded_signals()}
    try:
        yield
    except Asked as asked:
        if said:
            raise StoppedError(f"{said} ({asked.cause})") from None
        raise stopped_before_training(asked.cause) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def launchers_of(environment: Mapping[str, str]) -> tuple[int, ...]:
    """Returns the processes that started the one with this environment, the nearest last."""
    return tuple(map(int, environment.get(LAUNCHERS_VARIABLE, "").split()))


def with_launcher(launchers: Iterable[int]) -> dict[str, str]:
    """Returns the variable for what this process starts, given those that started it."""
    return {LAUNCHERS_VARIABLE: " ".join(map(str, (*launchers, os.getpid())))}


def follow(parent: int) -> None:
    """Has the kernel send this process SIGTERM when its parent is gone, or has gone already.

    Where no kernel does that, looking at `os.getppid` once in a while is all there is.

    Args:
        parent: The parent's process id.
    """
    if _prctl:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it went before we asked
        signal.raise_signal(signal.SIGTERM)


def end_with(parent: int) -> None:
    """Has the kernel kill this process when its parent is gone."""
    if _prctl:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Has processes below this one become its children when the ones that started them are gone.

    So it can still wait for all of them. Only Linux does that.
    """
    if _prctl:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        if _prctl:
            _prctl(_PR_SET_CHILD_SUBREAPER, 0)


def descendants() -> list[psutil.Process]:
    """Returns all processes below this one."""
    return psutil.Process().children(recursive=True)


def send(processes: Iterable[psutil.Process], signum: int) -> None:
    """Signals those that have not ended meanwhile."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signum)


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kills processes, and returns when they are gone."""
    processes = list(processes)
    send(processes, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=5.0)


def end_when_orphaned(parent: int) -> None:
    """Returns never, and ends this process and all below it when its parent has long been gone.

    For a thread of its own. The process is asked to stop first.
    """
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_GRACE_S)
    kill(descendants())
    os._exit(StoppedError.exit_code)
