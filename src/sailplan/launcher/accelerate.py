"""`accelerate launch` without the tracebacks of its own: `python -m sailplan.launcher.accelerate`.

The arguments are those of `accelerate launch`, and accelerate's own code carries them out. Only
its signals and its end differ. A signal goes to the ranks once, and they may take their time: torch
would kill them after 30 s. A failed rank has already said what was wrong, so neither torch's report
of the failed child nor accelerate's traceback follows, and the rank's exit code becomes ours. No
process is left behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from threading import Thread
from types import FrameType
from typing import NoReturn

import psutil

from sailplan.errors import StoppedError
from sailplan.hardware.memory_kills import oom_kills
from sailplan.imports import quick_imports
from sailplan.processes import (
    STOP_SIGNALS,
    Asked,
    descendants,
    end_when_orphaned,
    follow,
    heeded_signals,
    kill,
    launchers_of,
    send,
    with_launcher,
)
from sailplan.run.failure import Failure, asked_folder, write_failure, write_kills

END_TIMEOUT_S = 30.0
"""How long what is left after the ranks may take to end before it is killed."""

_SEND_AGAIN_S = 1.0
"""A process that was just being started when a signal came may have missed it."""


def main(arguments: Sequence[str]) -> NoReturn:
    """Runs `accelerate launch` with these arguments and exits as its first failed rank did.

    Args:
        arguments: `launch`, then what `accelerate launch` takes.
    """
    launchers = launchers_of(os.environ)
    os.environ.update(with_launcher(launchers))
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # torchrun's; the others are ours
    heeded, kills_before = heeded_signals(), oom_kills()
    ask = _AskRanks()
    for number in heeded:
        signal.signal(number, ask)
    try:
        if launchers:
            Thread(target=end_when_orphaned, args=(launchers[-1],), daemon=True).start()
            follow(launchers[-1])
        code = launch(list(arguments))
    except Asked:
        code = StoppedError.exit_code
    for number in heeded:
        signal.signal(number, signal.SIG_IGN)
    left = descendants()
    send(left, signal.SIGTERM)
    kill(psutil.wait_procs(left, timeout=END_TIMEOUT_S)[1])
    note_kills(oom_kills() - kills_before)
    sys.stderr.flush()
    # torch's agent may hold threads that wait for ranks which are gone.
    os._exit(code)


class _AskRanks:
    """A signal handler that asks the ranks to stop, or ends this process where there are none."""

    def __init__(self) -> None:
        self._sent: Counter[psutil.Process] = Counter()

    def __call__(self, signum: int, _frame: FrameType | None) -> None:
        ranks = psutil.Process().children()
        if not ranks:
            raise Asked(signal.Signals(signum).name)
        if signum == signal.SIGINT:  # a rank that does not listen yet would print a traceback
            signum = signal.SIGTERM
        send(ranks, signum)
        if not self._sent:
            self._sent.update(ranks)
            Thread(target=self._send_again, args=(signum,), daemon=True).start()

    def _send_again(self, signum: int) -> None:
        """Sends each rank a second signal, which it takes for the first, and later ranks two."""
        while True:
            time.sleep(_SEND_AGAIN_S)
            missed = [rank for rank in psutil.Process().children() if self._sent[rank] < 2]
            send(missed, signum)
            self._sent.update(missed)


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
        return 128 + error.sigval
    return 0


def exit_code(code: int, rank: int) -> int:
    """Returns a rank's exit code as a shell would, and says so where a signal ended the rank.

    A rank that a stop signal ended had not begun to listen, and so not to train.
    """
    if -code in STOP_SIGNALS or code - 128 in STOP_SIGNALS:
        return StoppedError.exit_code
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


def note_kills(count: int) -> None:
    """Leaves word that the kernel ended processes on this machine for want of memory.

    Whoever started us may be on another machine, and cannot count them.
    """
    folder = asked_folder()
    if folder is None or count <= 0:
        return
    with contextlib.suppress(OSError):
        write_kills(folder, count)


if __name__ == "__main__":
    main(sys.argv[1:])
