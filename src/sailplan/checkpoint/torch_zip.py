"""Reads files that `torch.save` wrote: their objects as data, their tensors as byte ranges.

torch stores every storage uncompressed and aligned to 64 bytes in a zip archive, so that a tensor
can be read in place. Files written without zip (torch before 1.6, and DeepSpeed's
`checkpoint_serialization: false`) hold the storages one after another behind the pickle.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, cast

from sailplan.checkpoint.inert import InertUnpickler
from sailplan.checkpoint.stored import ITEM_BYTES, StoredTensor
from sailplan.errors import CheckpointError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LEGACY_HEAD = pickle.dumps(_LEGACY_MAGIC, protocol=2)
_MAX_PICKLE_BYTES = 1 << 30
"""Of the objects without their tensors; those of a run on 1,024 ranks take some 100 MB."""

_LOCAL_HEAD_BYTES = 30
"""Of an entry's head, before its name and padding (APPNOTE 4.3.7)."""
_HEAD_MARK, _STREAMED = b"PK\3\4", 8
_BEHIND, _BEHIND_IF_STREAMED = (_HEAD_MARK, b"PK\1\2"), (b"PK\7\10",)
"""What follows a content: the next head or the directory, or a checksum where that came later."""

_BROKEN = "the file is truncated or corrupt: get it again"
_PICKLE_ERRORS = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError),
    *(AttributeError, UnicodeDecodeError, OverflowError, MemoryError, RecursionError),
)
"""What Python's unpickler raises on bytes that are no pickle."""

_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError),
    *(EOFError, UnicodeDecodeError),
)
"""What Python's `zipfile` raises on archives that are broken, or none that torch writes."""


def read(path: Path, *, start: int = 0, num_bytes: int | None = None) -> Any:
    """Returns what `torch.save` wrote, each tensor as a `StoredTensor`, unknown objects inert.

    Tensors are not read, and no code is run.

    Args:
        path: The file.
        start: Where in the file `torch.save` began to write, in bytes.
        num_bytes: How much it wrote there; by default all that follows.

    Raises:
        CheckpointError: The file is missing, truncated, no file of torch's, or names what a
            checkpoint has no reason to call.
    """
    try:
        with path.open("rb") as whole:
            if num_bytes is not None and start + num_bytes > path.stat().st_size:
                raise CheckpointError(f"{path} is cut off", todo=_BROKEN)
            part = num_bytes is not None
            file = cast(IO[bytes], _Window(whole, start, num_bytes or 0)) if part else whole
            head = file.read(len(_LEGACY_HEAD))
            file.seek(0)
            if head == _LEGACY_HEAD and not part:
                return _read_legacy(path, file)
            if head[:2] != b"PK":
                raise CheckpointError(f"{path} is no file that torch.save wrote", todo=_BROKEN)
            return _read_zip(path, file, start)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except _ZIP_ERRORS as error:
        raise CheckpointError(f"{path}: {error}", todo=_BROKEN) from error


class _Window(io.RawIOBase):
    """A part of a file as if it were one."""

    def __init__(self, file: IO[bytes], start: int, num_bytes: int) -> None:
        self._file, self._start, self._num_bytes, self._position = file, start, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}
        self._position = max(0, origin[whence] + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._num_bytes - self._position)
        self._file.seek(self._start + self._position)
        content = self._file.read(left if size is None or size < 0 else min(size, left))
        self._position += len(content)
        return content


def _read_zip(path: Path, file: IO[bytes], start: int) -> Any:
    size_bytes = path.stat().st_size
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if "data.pkl" not in entries:
            raise CheckpointError(f"{path} is a zip archive, but none that torch.save wrote")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise CheckpointError(f"{path} was written on a big-endian machine")

        def locate(key: str, dtype: str, count: int) -> StoredTensor:
            entry = entries.get(f"data/{key}")
            if entry is None:
                raise CheckpointError(f"{path} lacks the storage {key}", todo=_BROKEN)
            if entry.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(
                    f"{path} is compressed", allowed="the uncompressed archives of torch.save"
                )
            offset = _begin(file, entry)
            if offset is None:
                raise CheckpointError(f"{path} has a broken head at storage {key}", todo=_BROKEN)
            num_bytes = count * ITEM_BYTES[dtype]
            if num_bytes > entry.file_size or start + offset + num_bytes > size_bytes:
                raise CheckpointError(f"{path} ends within the storage {key}", todo=_BROKEN)
            return _flat(path, start + offset, dtype, count)

        if entries["data.pkl"].file_size > _MAX_PICKLE_BYTES:
            raise CheckpointError(f"{path} holds objects of more than {_MAX_PICKLE_BYTES} bytes")
        with archive.open(entries["data.pkl"]) as content:
            return load(InertUnpickler(content, locate, label=str(path)), path)


def _begin(file: IO[bytes], entry: zipfile.ZipInfo) -> int | None:
    """Returns where an entry's content begins; None where the head before it is broken.

    The content begins behind a name and padding whose lengths stand in that head alone: a wrong one
    would shift every element. So what follows the content must be the archive's next part.
    """
    file.seek(entry.header_offset)
    head = file.read(_LOCAL_HEAD_BYTES).ljust(_LOCAL_HEAD_BYTES, b"\0")
    name_bytes, extra_bytes = struct.unpack("<HH", head[-4:])
    begin = entry.header_offset + _LOCAL_HEAD_BYTES + name_bytes + extra_bytes
    file.seek(begin + entry.compress_size)
    marks = _BEHIND_IF_STREAMED if entry.flag_bits & _STREAMED else _BEHIND
    return begin if head[:4] == _HEAD_MARK and file.read(4) in marks else None


def _read_legacy(path: Path, file: IO[bytes]) -> Any:
    """Reads a file without zip: four pickles, the keys of the storages, then the storages.

    A storage is a count of elements in eight bytes and the elements. Where each lies is known only
    behind the pickle that refers to it, so the pickle is read twice.
    """

    def nowhere(key: str, dtype: str, count: int) -> StoredTensor:
        dtypes[key] = dtype
        return _flat(path, 0, dtype, count)

    def next_one(locate: Any = nowhere) -> Any:
        return load(InertUnpickler(file, locate, label=str(path)), path)

    dtypes: dict[str, str] = {}
    magic, protocol, system = next_one(), next_one(), next_one()
    if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise CheckpointError(f"{path} is of an unknown protocol {protocol}")
    if not system.get("little_endian", True):
        raise CheckpointError(f"{path} was written on a big-endian machine")
    start = file.tell()
    next_one()
    keys = [str(key) for key in next_one()]
    position, size_bytes = file.tell(), path.stat().st_size
    places: dict[str, StoredTensor] = {}
    for key in keys:
        file.seek(position)
        (count,) = struct.unpack("<q", file.read(8))
        places[key] = _flat(path, position + 8, dtypes[key], count)
        position += 8 + places[key].num_bytes
        if count < 0 or position > size_bytes:
            raise CheckpointError(f"{path} ends within the storage {key}", todo=_BROKEN)
    file.seek(start)
    return next_one(lambda key, _dtype, _count: places[key])


def load(unpickler: InertUnpickler, path: Path) -> Any:
    """Returns what an unpickler reads.

    Raises:
        CheckpointError: It is no pickle, or a broken one.
    """
    try:
        return unpickler.load()
    except _PICKLE_ERRORS as error:
        raise CheckpointError(f"{path} holds a broken pickle: {error}", todo=_BROKEN) from error


def _flat(path: Path, offset: int, dtype: str, count: int) -> StoredTensor:
    return StoredTensor(file=path, offset=offset, dtype=dtype, shape=(count,), stride=(1,))
