"""What went wrong on a rank, as a file: the ranks write it, whoever started them reads it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

FOLDER_VARIABLE = "SAILPLAN_FAILURES"
"""Environment variable with the folder where ranks leave their failures instead of printing them;
whoever sets it reads them when all ranks have ended, and tells."""

ATTEMPT_VARIABLE = "SAILPLAN_ATTEMPT"
"""Environment variable with the number of the launch."""

Kind = Literal["user", "oom", "hang", "stopped", "unknown", "signal", "connection"]
"""A user's mistake; no memory; no progress; asked to stop; a bug; ended by a signal; and what is
only the echo of another rank's end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """How one rank failed."""

    rank: int
    kind: Kind
    error: str
    """In one line; of a signal, its name."""
    exit_code: int
    traceback: str = ""
    step: int = 0
    """Optimizer steps that were done."""
    phase: str = ""
    """What the rank was doing, where it could tell."""
    time: float = field(default_factory=time.time)

    @property
    def is_echo(self) -> bool:
        """Whether it only says that another rank is gone."""
        return self.kind == "connection" or (self.kind == "signal" and self.error == "SIGTERM")


def asked_folder() -> Path | None:
    """Returns where this process is to leave its failure; None where it prints it."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder) if folder else None


def write_failure(folder: Path, failure: Failure) -> None:
    """Writes a rank's failure; the first one that a rank writes stays.

    Raises:
        OSError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank-{failure.rank}.json"
    half = path.with_suffix(f".{os.getpid()}.tmp")
    half.write_text(json.dumps(asdict(failure), indent=2) + "\n", encoding="utf-8")
    try:
        os.link(half, path)  # unlike a rename, it replaces nothing
    except FileExistsError:
        return
    finally:
        half.unlink()


def read_failures(folder: Path) -> list[Failure]:
    """Returns the failures in a folder, the one that the others follow from first."""
    found = []
    for path in folder.glob("rank-*.json") if folder.is_dir() else ():
        try:
            found.append(Failure(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):  # of another version; what it says is in the log
            continue
    return in_order(found)


def write_kills(folder: Path, count: int) -> None:
    """Writes how many processes the kernel has ended on this machine for want of memory.

    Raises:
        OSError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"kills-{socket.gethostname()}").write_text(f"{count}\n", encoding="ascii")


def read_kills(folder: Path) -> int:
    """Returns how many processes the kernel has ended on all machines that left word."""
    total = 0
    for path in folder.glob("kills-*") if folder.is_dir() else ():
        try:
            total += int(path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return total


def in_order(failures: Iterable[Failure]) -> list[Failure]:
    """Sorts failures: real ones before a wish to stop, and that before echoes; then by time."""
    return sorted(failures, key=lambda one: (one.is_echo, one.kind == "stopped", one.time))
