"""The last lines of files that others write to, without reading what is before them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_BLOCK_BYTES = 64 * 2**10
_LINE_END = ord("\n")


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


def start_of_last(path: Path, num_lines: int) -> int:
    """Returns where in a file its last lines begin, in bytes; 0 where it has no more, or is none.

    Args:
        path: The file.
        num_lines: How many lines; at least one.
    """
    try:
        with path.open("rb") as file:
            start = file.seek(0, os.SEEK_END)
            wanted = num_lines
            file.seek(max(0, start - 1))
            wanted += file.read(1) == b"\n"  # the one that ends the last line
            while start:
                before, start = start, max(0, start - _BLOCK_BYTES)
                file.seek(start)
                block = file.read(before - start)
                found = block.count(b"\n")
                if found >= wanted:
                    ends = [at for at, byte in enumerate(block) if byte == _LINE_END]
                    return start + ends[found - wanted] + 1
                wanted -= found
    except OSError:
        pass
    return 0


@dataclass(slots=True)
class Growing:
    """A file that grows, read as far as it is; one that is replaced by a shorter is read anew."""

    path: Path
    num_replaced: int = 0
    """How often it was begun anew."""
    position: int = 0
    """Bytes of it that are behind."""
    _rest: bytes = b""

    def new_lines(self) -> list[str]:
        """Returns the whole lines that have come since the last time."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self.position:
                    self.num_replaced += 1
                    self.position, self._rest = 0, b""
                file.seek(self.position)
                content = file.read()
        except OSError:
            return []
        self.position += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]

    def rest(self) -> str:
        """Returns what has come of a line that is not whole."""
        return self._rest.decode("utf-8", "replace")
