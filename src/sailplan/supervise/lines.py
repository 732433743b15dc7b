"""The last lines of files that others write to, without reading what is before them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def last_lines(path: Path, num_bytes: int) -> list[str]:
    """Returns the lines within a file's last bytes, but for one whose beginning is not among them.

    Args:
        path: The file; none has no lines.
        num_bytes: How much is read at most.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            start = max(0, end - num_bytes)
            # With the byte before, it shows whether the first line is a whole one.
            file.seek(max(0, start - 1))
            content = file.read(num_bytes + 1)
    except OSError:
        return []
    if start:
        content = content.partition(b"\n")[2]
    return content.decode("utf-8", "replace").splitlines()


@dataclass(slots=True)
class Growing:
    """A file that grows, read as far as it is; one that is replaced by a shorter is read anew."""

    path: Path
    num_replaced: int = 0
    """How often it was begun anew."""
    _position: int = 0
    _rest: bytes = b""

    def new_lines(self) -> list[str]:
        """Returns the whole lines that have come since the last time."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._position:
                    self.num_replaced += 1
                    self._position, self._rest = 0, b""
                file.seek(self._position)
                content = file.read()
        except OSError:
            return []
        self._position += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]
