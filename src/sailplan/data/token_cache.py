"""A split's rows, encoded once and kept on disk, for every process of the machine to map.

One process encodes while the others wait at a lock, for as long as it takes: no collective of the
process group is open meanwhile, whose time-out would end the run. A file of the cache is written
beside its place and renamed into it, so that one that is there is whole, whoever wrote it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types
import tokenizers
import trl
import xxhash

import sailplan
from sailplan import errors
from sailplan.data.encode_row import RowEncoder
from sailplan.data.one_process import one_process
from sailplan.data.token_rows import FEATURES, RangeEncoder
from sailplan.data.workers import in_order
from sailplan.errors import OutputError, SailplanError
from sailplan.files import write_atomically
from sailplan.progress import track
from sailplan.sizes import shown_bytes

_BATCH_ROWS = 1024
"""Rows that are written at once, and found as one when the file is mapped."""

_SAMPLED_ROWS = 128
"""Rows from which the size of all is told beforehand, where there are many more."""

_SURE = 0.9
"""The part of that size that must find room: it is an estimate, off by a few percent."""

_STALE_S = 3600.0
"""What a builder left unfinished for so long, it has left for good."""


def folder() -> Path:
    """Returns where the files of the cache lie."""
    return Path(datasets.config.HF_DATASETS_CACHE).expanduser() / "sailplan" / "tokens"


def key_of(raw: datasets.Dataset, encode: RowEncoder) -> str:
    """Returns the key of what `encode` makes of rows: a hash of all that decides about it.

    Args:
        raw: The rows; `datasets` knows them by a fingerprint of files, splits and selections.
        encode: Says format, folders of images, tokenizer, processor, template and options.
    """
    digest = xxhash.xxh3_128()
    opener = encode.opener
    parts = (
        raw._fingerprint,
        encode.encoder.fingerprint(),
        repr(encode.format),
        *map(str, (opener.root, *opener.entry_roots)),
        f"{FEATURES} {_sources()} tokenizers {tokenizers.__version__} trl {trl.__version__}",
    )
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


@cache
def _sources() -> str:
    """Returns a hash of the code that encodes: a clone's version stays while it changes."""
    digest = xxhash.xxh3_128()
    package = Path(sailplan.__file__).parent
    for room in ("data", "model"):
        for path in sorted((package / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def encoded_rows(
    raw: datasets.Dataset,
    numbers: Any,
    encode: RowEncoder,
    *,
    workers: int | None = None,
    speaks: bool = True,
) -> datasets.Dataset:
    """Returns the rows encoded, in the columns of `FEATURES`: from the cache, else made now.

    Of several processes that call this at once, one encodes.

    Args:
        raw: The rows.
        numbers: Each row's number before any were held out.
        encode: Encodes one.
        workers: Processes that encode; as many as there are cores where not given.
        speaks: Whether this process says that it waits for another one.

    Raises:
        DataError: A row cannot be trained on; the first one is named.
        OutputError: The cache cannot be written.
        SailplanError: What another process failed with while this one waited for it.
    """
    entry = _Entry(path=folder() / f"cache-{key_of(raw, encode)}.arrow", num_rows=len(raw))
    found = entry.read()
    if found is not None:
        return found
    failed_before = entry.failure()
    with contextlib.ExitStack() as held:
        with _disk_errors():
            entry.path.parent.mkdir(parents=True, exist_ok=True)
            told = f"waiting for another process that encodes {encode.split}" if speaks else ""
            held.enter_context(one_process(entry.path, told=told))
        found = entry.read()
        if found is not None:
            return found
        failure = entry.failure()
        if failure is not None and failure != failed_before:
            _, kind, message = json.loads(failure)
            raise getattr(errors, kind)(message)
        work = RangeEncoder(raw=raw, numbers=numbers, encode=encode)
        try:
            entry.write(work, workers=workers)
        except SailplanError as error:
            entry.note(error)
            raise
    found = entry.read()
    if found is None:
        raise OutputError(
            f"{entry.path} cannot be read back", todo="look after the disk, and start again"
        )
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """One file of the cache."""

    path: Path
    num_rows: int

    def read(self) -> datasets.Dataset | None:
        """Maps the file; None where there is none, or only a part of one."""
        if not self.path.is_file():
            return None
        try:
            rows = datasets.Dataset.from_file(str(self.path))
        except (OSError, pa.ArrowException):  # a disk that lost what it had been given
            return None
        return rows if len(rows) == self.num_rows else None

    def write(self, work: RangeEncoder, *, workers: int | None) -> None:
        """Encodes all rows, and puts them in their place when they are whole."""
        split = work.encode.split
        with _disk_errors():
            self._clear_away()
        self._check_room(work)
        part = self.path.with_name(f"{self.path.name}.{socket.gethostname()}.{os.getpid()}.part")
        batches = in_order(
            work, self.num_rows, workers=workers, killed_todo="try dataset_num_proc: 1"
        )
        try:
            rows = self._written(part, batches, split)
            for _ in track(rows, label=f"encoding {split}", total=self.num_rows):
                pass
            with _disk_errors():
                part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)

    def _written(self, part: Path, batches: Iterator[pa.RecordBatch], split: str) -> Iterator[None]:
        """Writes batches, several at once, and yields once for each row."""
        done = 0
        with _disk_errors():
            file = pa.OSFile(str(part), "wb")
        with file:
            stream = pa.ipc.new_stream(file, FEATURES.arrow_schema)
            for batch in _joined(batches):
                try:
                    stream.write_batch(batch)
                except OSError as error:
                    free = shutil.disk_usage(part.parent).free + file.tell()
                    needed = (file.tell() + batch.nbytes) / (done + batch.num_rows) * self.num_rows
                    raise self._no_room(split, needed, free, error.errno) from error
                done += batch.num_rows
                yield from (None for _ in range(batch.num_rows))
            with _disk_errors():
                stream.close()  # not where writing failed: it writes as well
        with _disk_errors(), part.open("rb") as written:
            os.fsync(written.fileno())

    def _clear_away(self) -> None:
        """Removes what builders that are gone have left.

        Where the file system has locks, none that is still there is at work on this entry; where it
        has not, one on another machine may be.
        """
        mine = f".{socket.gethostname()}."
        for part in self.path.parent.glob("*.part"):
            with contextlib.suppress(OSError):
                _, _, builder = part.name.removesuffix(".part").partition(mine)
                if part.name.startswith(self.path.name) and builder.isdigit():
                    gone = not _is_alive(int(builder))
                else:
                    gone = time.time() - part.stat().st_mtime > _STALE_S
                if gone:
                    part.unlink()
        self._note_path.unlink(missing_ok=True)

    def _check_room(self, work: RangeEncoder) -> None:
        """Encodes some rows from all over the data, to know beforehand whether all will fit."""
        if self.num_rows < _SAMPLED_ROWS * 8:
            return
        sizes = []
        for row in np.linspace(0, self.num_rows - 1, _SAMPLED_ROWS, dtype=int).tolist():
            with contextlib.suppress(SailplanError):  # which row is wrong, encoding all says
                sizes.append(work(range(row, row + 1)).nbytes)
        needed = self.num_rows * sum(sizes) / max(len(sizes), 1)
        free = shutil.disk_usage(self.path.parent).free
        if needed * _SURE > free:
            raise self._no_room(work.encode.split, needed, free)

    def _no_room(
        self, split: str, needed: float, free: int, number: int | None = errno.ENOSPC
    ) -> OutputError:
        reason = "" if number in (None, errno.ENOSPC) else f" ({os.strerror(number)})"
        return OutputError(
            f"the tokens of {self.num_rows} {split} rows take about {shown_bytes(needed)}, "
            f"{self.path.parent} has room for {shown_bytes(free)}{reason}",
            todo=f"make room there, or {_MOVE}",
        )

    @property
    def _note_path(self) -> Path:
        return self.path.with_suffix(".failed")

    def note(self, error: SailplanError) -> None:
        """Leaves word of a failure for those who wait."""
        failure = [time.time_ns(), type(error).__name__, str(error)]
        with contextlib.suppress(OSError):
            write_atomically(self._note_path, json.dumps(failure).encode())

    def failure(self) -> bytes | None:
        """Returns word of the last failure, which differs from all others; None without one."""
        try:
            return self._note_path.read_bytes()
        except OSError:
            return None


def _joined(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Puts small batches together: each of them takes time whenever the file is mapped."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(one.num_rows for one in waiting) >= _BATCH_ROWS:
            yield pa.concat_batches(waiting)
            waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Says in a line that the cache cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"the token cache in {folder()} cannot be written: {reason}", todo=_MOVE
        ) from error


_MOVE = "set HF_DATASETS_CACHE to a folder on another disk"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
