"""Reads members of zip and tar archives in place: nothing is ever unpacked.

A path may lead into an archive: `images.zip/a.png` is the member `a.png` of `images.zip`.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sailplan.errors import DataError

SUFFIXES = (".zip", ".tar")
"""The archives that are read; a compressed tar has no places to read at."""

MEMBER_LIMIT_BYTES = 1 << 30
"""A larger member is refused from its header: an image has no such size, a zip bomb has."""

_BROKEN = "get the file again"


@dataclass(frozen=True, slots=True)
class Inside:
    """A path that leads into an archive."""

    archive: Path
    """The archive."""
    member: str
    """The name within it, normalised; empty for the whole."""


def split(path: Path) -> Inside | None:
    """Returns what a path means if it leads into an archive, without opening it.

    Args:
        path: An absolute path; `..` behind the archive is resolved as a file system would.
    """
    for parent in (path, *path.parents):
        if parent.suffix.lower() in SUFFIXES and parent.is_file():
            member = path.relative_to(parent).as_posix()
            return Inside(parent, "" if member == "." else posixpath.normpath(member))
    return None


def read(inside: Inside) -> bytes:
    """Returns a member's bytes.

    Raises:
        DataError: The archive is broken, or the member is missing, locked or too large.
    """
    label = f"{inside.archive}/{inside.member}"
    size = members(inside.archive).get(inside.member)
    if size is None:
        raise DataError(
            f"{inside.archive} holds no {inside.member}",
            todo="check the path",
            kind="image-missing",
        )
    if size > MEMBER_LIMIT_BYTES:
        raise DataError(f"{label} has {size} bytes", allowed=f"at most {MEMBER_LIMIT_BYTES}")
    try:
        archive = _open(inside.archive)
        if isinstance(archive, zipfile.ZipFile):
            return archive.read(inside.member)
        start = archive.places[inside.member]
        content = os.pread(archive.descriptor, size, start)
    except RuntimeError as error:  # zipfile's for a member that is encrypted
        raise DataError(f"{label} is locked with a password", todo="unlock the archive") from error
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(f"{label} cannot be read: {error}", todo=_BROKEN) from error
    if len(content) != size:
        raise DataError(f"{label} is cut off", todo=_BROKEN)
    return content


def members(path: Path) -> dict[str, int]:
    """Returns the size of each file in an archive by its name, in the archive's order.

    Raises:
        DataError: It is no archive, or broken.
    """
    archive = _open(path)
    if isinstance(archive, zipfile.ZipFile):
        return {e.filename: e.file_size for e in archive.infolist() if not e.is_dir()}
    return archive.sizes


@dataclass(frozen=True, slots=True)
class _Tar:
    """A tar file whose members are known."""

    descriptor: int
    sizes: dict[str, int]
    places: dict[str, int]


def _open(path: Path) -> zipfile.ZipFile | _Tar:
    status = path.stat()
    # Each process opens its own: forked workers would move one another's position in the file.
    return _opened(path, os.getpid(), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _opened(path: Path, _pid: int, _changed_ns: int, size_bytes: int) -> zipfile.ZipFile | _Tar:
    try:
        if path.suffix.lower() == ".zip":
            return zipfile.ZipFile(path)
        with tarfile.open(path, "r:") as tar:
            found = [(m.name.removeprefix("./"), m.size, m.offset_data) for m in _files(tar)]
        if any(start + size > size_bytes for _, size, start in found):
            raise tarfile.ReadError("unexpected end of data")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        kind = path.suffix[1:].lower()
        raise DataError(f"{path} is no {kind} archive, or cut off: {error}", todo=_BROKEN) from None
    return _Tar(descriptor, {n: s for n, s, _ in found}, {n: at for n, _, at in found})


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yields plain files; links and devices are none, and sparse files have no one place."""
    for member in tar:
        if member.isreg() and not member.issparse():
            yield member
