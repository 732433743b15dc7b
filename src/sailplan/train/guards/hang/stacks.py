"""Where a process is: its threads, its DataLoader's workers, and what keeps the interpreter."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple

ASK = signal.SIGRTMIN + 3 if sys.platform.startswith("linux") else signal.SIGUSR2
"""What a rank and its workers answer with their stack; no launcher and no scheduler sends it."""

_ANSWER_S = 1.0
"""How long a worker may take to answer."""

_ROOT = re.compile(r"/(?:lib/python[\d.]+/)?site-packages/|/lib/python[\d.]+/|/src/")
"""Below these, a file's path is a module's name."""

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x.*$", re.MULTILINE)
_CALL = re.compile(r'  File "(.+)", line (\d+) in (.+)')


class Frame(NamedTuple):
    """A call that has not returned."""

    file: str
    line: int
    name: str

    def words(self) -> str:
        """Says where it is, as `sailplan/data/collator.py:88 in __call__`."""
        file = _ROOT.split(self.file)[-1]
        if file == self.file:
            file = "/".join(Path(file).parts[-3:]).lstrip("/")
        return f"{file}:{self.line} in {self.name}"


def main_frames() -> list[Frame]:
    """Returns where this process's main thread is, the innermost call first."""
    ident = threading.main_thread().ident
    frame = sys._current_frames().get(ident) if ident else None
    return [
        Frame(call.f_code.co_filename, line, call.f_code.co_name)
        for call, line in traceback.walk_stack(frame)
    ]


def frames_of(text: str) -> list[Frame]:
    """Reads the last thread that `faulthandler` wrote, the main one; the innermost call first."""
    last = _THREAD.split(text)[-1]
    return [Frame(file, int(line), name) for file, line, name in _CALL.findall(last)]


class Stacks:
    """Writes the stacks of this process and of the workers that it forks from now on.

    Args:
        unasked: Where the stack goes when no thread of Python's runs any more.
    """

    def __init__(self, unasked: Path) -> None:
        self._unasked = unasked.open("w", encoding="utf-8")
        # Workers inherit the handler, and the file that it writes to.
        self._answers: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  open till close()
        faulthandler.register(ASK, self._answers, all_threads=True)

    def write_unless_asked_again(self, seconds: float) -> None:
        """Has the stack written in so many seconds, unless this is called before.

        That takes no lock of the interpreter: it shows even a call into C that never returns it.
        """
        faulthandler.dump_traceback_later(seconds, file=self._unasked)

    def write(self, path: Path) -> list[list[Frame]]:
        """Writes the stacks of all threads and workers, and returns the workers'.

        Returns:
            Of each worker its calls, the innermost first.
        """
        workers = []
        with path.open("wb") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            if asked := self._answered():
                file.write(f"\nwhen it was asked\n{asked}\n".encode())
            for pid in _forked():
                text = self._answer(pid)
                file.write(f"\nworker {pid}\n{text or 'gives no answer'}\n".encode())
                workers.append(frames_of(text))
        return workers

    def asked(self) -> list[Frame]:
        """Returns where the main thread was when another rank has asked this process."""
        return frames_of(self._answered())

    def _answered(self, start: int = 0) -> str:
        answers = self._answers.fileno()
        size = os.fstat(answers).st_size - start
        return os.pread(answers, size, start).decode(errors="replace")

    def _answer(self, pid: int) -> str:
        """Asks a worker for its stack."""
        answers = self._answers.fileno()
        start = os.fstat(answers).st_size
        try:
            os.kill(pid, ASK)
        except OSError:
            return ""
        seen, until = start, time.monotonic() + _ANSWER_S
        while time.monotonic() < until:
            time.sleep(0.05)
            size = os.fstat(answers).st_size
            if size == seen > start:
                break  # it has written all
            seen = size
        return self._answered(start)

    def close(self) -> None:
        """Ends all that."""
        faulthandler.cancel_dump_traceback_later()
        faulthandler.unregister(ASK)
        self._unasked.close()
        self._answers.close()


def _forked() -> Iterable[int]:
    """Yields the processes that have inherited the handler; it would end any other."""
    for child in multiprocessing.active_children():
        started = getattr(child, "_popen", None)
        if child.pid is not None and getattr(started, "method", "") == "fork":
            yield child.pid
