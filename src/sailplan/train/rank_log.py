"""What a rank prints, in a file of its own beside the terminal.

Nothing is written before training begins, for a run that fails before leaves nothing behind; what
was printed until then comes first. What C libraries print by themselves is not in it.
"""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from sailplan.run.failure import ATTEMPT_VARIABLE


class RankLog:
    """Copies of what this process prints."""

    def __init__(self) -> None:
        self._early: list[str] | None = None
        self._file: int | None = None

    def install(self) -> None:
        """Copies what is printed from now on; it waits in memory for `begin`."""
        self._early = []
        # All that is used of a text stream.
        sys.stdout = _Both(sys.stdout, self)
        sys.stderr = _Both(sys.stderr, self)

    def begin(self, folder: Path) -> None:
        """Writes what was printed until now, and from now on at once; nothing without `install`.

        Args:
            folder: Where the ranks' logs lie, each appended to over all launches of a run.

        Raises:
            OSError: The file cannot be made.
        """
        if self._early is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        rank, attempt = os.environ.get("RANK", "0"), os.environ.get(ATTEMPT_VARIABLE, "1")
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        path, flags = folder / f"rank-{rank}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._file = os.open(path, flags, 0o666)
        early, self._early = self._early, None
        self.write(f"==== launch {attempt}, rank {rank}, {now} ====\n{''.join(early)}")

    def write(self, text: str) -> None:
        """Adds whole lines; those that are too early wait."""
        if self._early is not None:
            self._early.append(text)
        elif self._file is not None:
            try:
                os.write(self._file, text.encode(errors="replace"))
            except OSError:  # a full disk ends no training by its log
                return


class _Both:
    """A text stream that passes everything on, and whole lines to the log too.

    A bar writes its line again and again behind carriage returns: the last one counts, as on the
    terminal.
    """

    def __init__(self, stream: TextIO, log: RankLog) -> None:
        self._stream, self._log, self._line = stream, log, ""

    def write(self, text: str) -> int:
        written = self._stream.write(text)
        *whole, rest = (self._line + text).split("\n")
        if whole:
            self._log.write("".join(f"{_shown(line)}\n" for line in whole))
        self._line = _shown(rest) + ("\r" if rest.endswith("\r") else "")
        return written

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _shown(line: str) -> str:
    return line.rstrip("\r").rpartition("\r")[2]


LOG = RankLog()
"""This process's."""
