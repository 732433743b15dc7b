"""What has been answered so far, a line a row, so that nothing is asked twice.

Each rank appends to a file of its own, and whoever begins reads them all. A line holds the key of
what was asked of whom and how; answers to anything else are never taken.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import xxhash
from filelock import FileLock, Timeout

from sailplan.errors import OutputError
from sailplan.evaluate.comparison import Answer, RowLoss
from sailplan.records import from_json, to_json

Kind = Literal["answer", "loss"]

_KINDS: Mapping[str, type[Any]] = {"answer": Answer, "loss": RowLoss}


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Makes a folder for journals where it is missing, and keeps other comparisons out of it.

    Raises:
        OutputError: It cannot be made, or another comparison is at work in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "compare.lock", timeout=0)
        lock.acquire()
    except Timeout:
        got = f"another comparison is at work in {folder}"
        raise OutputError(got, todo="wait for it, or stop it") from None
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def key_of(kind: Kind, *parts: object) -> str:
    """Returns the key of one thing that was asked: of all that decides about what is answered."""
    return xxhash.xxh3_128_hexdigest(json.dumps([kind, *parts], default=str).encode())


@dataclass(kw_only=True, slots=True)
class Journal:
    """The answers and losses under one folder.

    Args:
        folder: The folder, which is there.
        rank: Whose file is written.
    """

    folder: Path
    rank: int = 0
    _found: dict[str, Any] = field(default_factory=dict)

    def read(self) -> None:
        """Reads what all ranks have written; what cannot be read is left out, and asked again."""
        for path in sorted(self.folder.glob("journal-*.jsonl")):
            try:
                lines = path.read_bytes().splitlines()
            except OSError:
                continue
            for line in lines:  # the last one may have been cut off by a kill
                try:
                    record = json.loads(line)
                    kind = next(name for name in _KINDS if name in record)
                    self._found[record["key"]] = from_json(_KINDS[kind], record[kind])
                except (ValueError, TypeError, KeyError, StopIteration):
                    continue

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Returns the keys that nothing is known of."""
        return [key for key in keys if key not in self._found]

    def add(self, kind: Kind, found: Mapping[str, Answer | RowLoss]) -> None:
        """Writes down what was answered, all of it in one write that has reached the disk.

        Raises:
            OutputError: It cannot be written.
        """
        lines = [
            json.dumps({"key": key, kind: to_json(value)}) + "\n" for key, value in found.items()
        ]
        path = self.folder / f"journal-{self.rank}.jsonl"
        try:
            with path.open("ab", buffering=0) as file:
                if _is_cut_off(path):  # by a kill: what follows must begin a line
                    file.write(b"\n")
                file.write("".join(lines).encode())
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from None
        self._found |= found


def _is_cut_off(path: Path) -> bool:
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        if not end:
            return False
        file.seek(end - 1)
        return file.read(1) != b"\n"
