"""A program on a terminal of its own, as a user sits before it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\r")


@dataclass
class Terminal:
    """A terminal, and the program on it."""

    process: subprocess.Popen[bytes]
    handle: int
    raw: str = ""
    """All that the program has written so far."""

    @property
    def text(self) -> str:
        """What it has written, without colours and movements."""
        return _STEERING.sub("", self.raw)

    def read_until(self, wanted: str, *, timeout: float = 60.0) -> str:
        """Reads until some words have come since the last time; returns what has come.

        Raises:
            AssertionError: They have not, and the program has ended or the time is over.
        """
        end = time.monotonic() + timeout
        start = len(self.raw)
        while wanted not in (new := _STEERING.sub("", self.raw[start:])):
            if not self._read(end):
                raise AssertionError(f"no {wanted!r} came, but:\n{new[-4000:]}")
        return new

    def end(self, *, timeout: float = 60.0) -> int:
        """Reads what is still written, and returns the exit code."""
        end = time.monotonic() + timeout
        while self._read(end):
            pass
        return self.process.wait(timeout)

    def type(self, keys: str) -> None:
        """Types."""
        os.write(self.handle, keys.encode())

    @property
    def is_echoing(self) -> bool:
        """Whether it shows what is typed, as a terminal does at a shell's prompt."""
        return bool(termios.tcgetattr(self.handle)[3] & termios.ECHO)

    def _read(self, end: float) -> bool:
        """Reads what is there, or waits for it; false at the end."""
        left = end - time.monotonic()
        if left <= 0 or not select.select([self.handle], [], [], left)[0]:
            return False
        try:
            found = os.read(self.handle, 65536)
        except OSError:  # nobody has the other side any more
            return False
        self.raw += found.decode("utf-8", "replace")
        return bool(found)


@contextmanager
def on_terminal(
    command: Sequence[str], *, width: int = 100, height: int = 40, **environment: str
) -> Iterator[Terminal]:
    """Starts a program on a terminal; it is ended where the test is.

    Args:
        command: The program.
        width: Letters of a line.
        height: Lines.
        **environment: Variables beside this process's.
    """
    handle, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color", **environment}
    env = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        list(command),
        stdin=other,
        stdout=other,
        stderr=other,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(other, termios.TIOCSCTTY, 0),
    )
    os.close(other)
    try:
        yield Terminal(process, handle)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(handle)
