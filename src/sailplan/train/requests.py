"""What asks this rank to stop: signals, the stop file, and the end of the process above it.

Imports nothing heavy: a rank listens before torch is loaded. A thread of its own hears everything,
since Python's own handlers wait for the main thread, which may stand in a collective for minutes:
the C-level handler writes each signal into a pipe (`signal.set_wakeup_fd`). Before training a rank
has nothing to lose and ends at once; in training it goes on until all ranks have agreed to stop.
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.util import register_after_fork
from pathlib import Path
from types import FrameType

import psutil

from sailplan.errors import StoppedError
from sailplan.processes import (
    LAUNCHERS_VARIABLE,
    LOOK_EVERY_S,
    ORPHAN_GRACE_S,
    STOP_SIGNALS,
    Asked,
    end_with,
    follow,
    heeded_signals,
    launchers_of,
    stopped_before_training,
)
from sailplan.run.paths import STOP_FILE, RunPaths

ORPHANED = "its launcher is gone"
CAUSES = (*(one.name for one in STOP_SIGNALS), STOP_FILE, ORPHANED)
"""What a rank can be asked by."""

SAME_REQUEST_S = 5.0
"""Signals within this time are one request: terminal, scheduler and launcher may all send it."""

UNWIND_S = 5.0
"""How long a rank that does not train yet may take to clean up before it ends regardless."""

_LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")
"""What torchrun and `accelerate launch` tell each process that they start."""


class Requests:
    """Hears what asks this process to stop; there is one, `REQUESTS`."""

    def __init__(self) -> None:
        self.launchers: tuple[int, ...] = ()
        """The processes that started this one, the nearest last; empty where it runs by hand."""
        self._reset()

    def _reset(self) -> None:
        self._cause: str | None = None
        self._first_at = 0.0
        self._told: Callable[[str], None] | None = None
        self._orphan_since: float | None = None
        self._stop_file: Path | None = None
        self._listens = False
        self._is_over = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listens while the work inside is done.

        Raises:
            StoppedError: This rank was asked to stop before it trained.
        """
        self._reset()
        self.launchers, heeded = _launchers(), heeded_signals()
        ear, mouth = os.pipe()
        os.set_blocking(mouth, False)
        self._listens = True
        previous = {number: signal.signal(number, self._interrupt) for number in heeded}
        wakeup = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(ear,), daemon=True, name="stop").start()
        try:
            if self.launchers:
                follow(self.launchers[-1])
            yield
        except Asked as asked:
            raise stopped_before_training(self._cause or asked.cause) from None
        finally:
            self._listens = False
            signal.set_wakeup_fd(wakeup)
            os.close(mouth)
            if not self._is_over:
                for number, handler in previous.items():
                    signal.signal(number, handler)

    def watch(self, paths: RunPaths) -> None:
        """Heeds the run's stop file from now on, where this is the first rank.

        One that lies there from before is taken away, unless a launcher of ours has done so.
        """
        if os.environ.get("RANK", "0") != "0":
            return
        if LAUNCHERS_VARIABLE not in os.environ:
            paths.stop_file.unlink(missing_ok=True)
        self._stop_file = paths.stop_file

    def begin(self, told: Callable[[str], None]) -> None:
        """Training begins: from now on `told` is called where this rank is asked to stop.

        Args:
            told: Is given what asked, one of `CAUSES`; from another thread.

        Raises:
            Asked: It has been asked meanwhile.
        """
        if self._cause is not None:
            raise Asked(self._cause)
        self._told = told
        if self._cause is not None:  # the other thread has heard it just now
            told(self._cause)  # type: ignore[unreachable]  # mypy knows of no other thread

    def end(self) -> None:
        """Heeds no stop signal any more, to the end of this process, which is near.

        The first rank that leaves has torch's agent send SIGTERM to the others.
        """
        self._is_over = True
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _interrupt(self, signum: int, _frame: FrameType | None) -> None:
        """Is called in the main thread, when that comes to it."""
        if self._told is None:
            if signum == signal.SIGTERM and self._is_torn_down():
                os._exit(128 + signum)
            if self._cause is None:  # the other thread may come to it later
                self._first_at, self._cause = time.monotonic(), signal.Signals(signum).name
            raise Asked(self._cause)

    def _listen(self, ear: int) -> None:
        heard: bytes | None = None
        while heard != b"":  # the other end is closed
            ready, _, _ = select.select([ear], [], [], LOOK_EVERY_S)
            heard = os.read(ear, 512) if ready else None
            for number in heard or b"":
                if number in STOP_SIGNALS and not self._is_over:
                    self._hear(signal.Signals(number))
            self._look()
        os.close(ear)

    def _hear(self, signum: signal.Signals) -> None:
        orphaned = bool(self.launchers) and os.getppid() != self.launchers[-1]
        if signum == signal.SIGTERM and not orphaned and self._is_torn_down():
            os._exit(128 + signum)
        now = time.monotonic()
        if self._cause is None:
            self._ask(ORPHANED if orphaned else signum.name)
        elif signum != signal.SIGUSR1 and now - self._first_at > SAME_REQUEST_S:
            os._exit(128 + signum)

    def _look(self) -> None:
        """Looks at what sends no signal, and ends what does not end by itself."""
        now = time.monotonic()
        if self._cause is None and self._stop_file is not None and self._stop_file.exists():
            self._ask(STOP_FILE)
        if self.launchers and os.getppid() != self.launchers[-1]:
            if self._orphan_since is None:
                self._orphan_since = now
                self._ask(ORPHANED)
            if now - self._orphan_since > ORPHAN_GRACE_S:
                os._exit(StoppedError.exit_code)
        if self._cause and self._told is None and now - self._first_at > UNWIND_S:
            os._exit(StoppedError.exit_code)

    def _ask(self, cause: str) -> None:
        if self._cause is not None:
            return
        self._first_at, self._cause = time.monotonic(), cause
        if self._told is not None:
            self._told(cause)
        elif cause in (STOP_FILE, ORPHANED):  # no signal has come to the main thread
            _thread.interrupt_main(signal.SIGTERM)

    def _is_torn_down(self) -> bool:
        """Whether a rank beside this one has ended, so that torch's agent ends the others.

        By the same SIGTERM that it passes on where it is asked to stop: only the ranks that are
        left tell the one from the other.
        """
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if beside == 1 or not self.launchers:
            return False
        try:
            children = psutil.Process(self.launchers[-1]).children()
        except psutil.NoSuchProcess:
            return False
        alive = [child for child in children if _runs(child)]
        return len(alive) < beside


REQUESTS = Requests()
"""This process's."""


def _launchers() -> tuple[int, ...]:
    known = launchers_of(os.environ)
    parent = os.getppid()
    is_launched = bool(known) or any(name in os.environ for name in _LAUNCHED)
    return (*known, parent) if is_launched and parent not in known else known


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


_own_pid = os.getpid()


def _become_a_child() -> None:
    """Has a forked process end with the one that forked it, and heed no request itself."""
    global _own_pid
    parent, _own_pid = _own_pid, os.getpid()
    if not REQUESTS._listens:
        return
    end_with(parent)
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        is_end = number == signal.SIGTERM
        signal.signal(number, signal.SIG_DFL if is_end else signal.SIG_IGN)


def _take_sigterm_of_parent_alone(requests: Requests) -> None:
    """Makes a worker of this process one that nobody else ends by SIGTERM.

    torch's agent signals a rank's whole process group, as schedulers do: DataLoader workers that
    went at the signal would take the run with them before the ranks have saved.
    """
    if requests._listens and sys.platform.startswith("linux"):  # others do not tell who sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by, args=(os.getppid(),), daemon=True).start()


def _end_by(parent: int) -> None:
    """Ends this process at the SIGTERM of its parent; those of others it takes and forgets."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(128 + signal.SIGTERM)


os.register_at_fork(after_in_child=_become_a_child)
register_after_fork(REQUESTS, _take_sigterm_of_parent_alone)
