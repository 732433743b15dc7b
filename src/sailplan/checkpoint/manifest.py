"""A checkpoint's manifest: its files with their checksums, and what they are the state of.

It is written last, after every file is on the disk: a checkpoint without one was not finished, and
one whose files are others than it says is in doubt.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from sailplan.errors import CheckpointError
from sailplan.files import write_atomically

MANIFEST = "manifest.json"

PIECE_BYTES = 4 * 2**20
"""What is read of a file at a time."""
MOST_THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """What a file was when it was saved."""

    num_bytes: int
    """Its size."""
    xxh3: str
    """The 64-bit xxh3 of its content, in hexadecimal digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a checkpoint holds, and of what it is the state."""

    step: int
    """The optimizer step after which it was saved."""
    world_size: int
    """The ranks that saved it."""
    global_batch: int
    """The samples of an optimizer step."""
    strategy: str
    """How the state lies on the ranks, such as `zero3`."""
    run: str
    """The hash of what makes the run this run: only a checkpoint of the same is resumed from."""
    run_file: str
    """The hash of the resolved run file."""
    versions: Mapping[str, str]
    """The versions of the libraries that saved it, by package."""
    data: Mapping[str, Any]
    """Where in the data the run was, as JSON."""
    first: bool
    """Whether it was saved only to prove that saving works."""
    saved_at: float
    """When, in seconds since 1970."""
    files: Mapping[str, FileRecord]
    """Every file but this one, by its path under the checkpoint, with `/` between its parts."""

    @property
    def num_bytes(self) -> int:
        """The bytes of all files."""
        return sum(record.num_bytes for record in self.files.values())


def take_stock(
    folder: Path, *, threads: int | None = None, told: Callable[[int], None] | None = None
) -> dict[str, FileRecord]:
    """Returns what every file of a folder is, but for its manifest.

    The threads that hash inherit the niceness of the one that calls.

    Args:
        folder: The checkpoint, all of whose files are written.
        threads: How many files are read at a time; up to `MOST_THREADS` where None.
        told: Is told the bytes of every piece that has been read, by one thread at a time.

    Raises:
        CheckpointError: A link leads out of the folder.
        OSError: A file cannot be read.
    """
    return hash_files(folder, _names(folder), threads=threads, told=told)


def hash_files(
    folder: Path,
    names: Iterable[str],
    *,
    threads: int | None = None,
    told: Callable[[int], None] | None = None,
) -> dict[str, FileRecord]:
    """Returns what some files of a folder are; no file is ever in memory as a whole.

    Args:
        folder: The checkpoint.
        names: The files, by their paths under it.
        threads: How many files are read at a time; up to `MOST_THREADS` where None.
        told: Is told the bytes of every piece that has been read, by one thread at a time.

    Raises:
        CheckpointError: A path leaves the folder.
        OSError: A file cannot be read.
    """
    paths = {name: inside(folder, name) for name in sorted(names)}
    largest_first = sorted(paths, key=lambda name: paths[name].stat().st_size, reverse=True)
    turn, given_up = threading.Lock(), threading.Event()

    def tell(count: int) -> None:
        if given_up.is_set():
            raise RuntimeError("nobody waits for this file any more")
        if told is not None:
            with turn:
                told(count)

    threads = threads or min(MOST_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads, thread_name_prefix="manifest") as pool:
        futures = {name: pool.submit(_hash, paths[name], tell) for name in largest_first}
        try:
            return {name: futures[name].result() for name in paths}
        except BaseException:
            given_up.set()  # leaving the pool waits for its threads
            raise


def _hash(path: Path, tell: Callable[[int], None]) -> FileRecord:
    digest, num_bytes = xxhash.xxh3_64(), 0
    with path.open("rb", buffering=0) as file:
        piece = memoryview(bytearray(min(PIECE_BYTES, os.fstat(file.fileno()).st_size + 1)))
        while count := file.readinto(piece):
            digest.update(piece[:count])
            num_bytes += count
            tell(count)
    return FileRecord(num_bytes=num_bytes, xxh3=digest.hexdigest())


def _names(folder: Path) -> list[str]:
    """Returns the paths of the files under a folder, but for its manifest and what became none."""
    found = []
    for home, folders, files in os.walk(folder):
        for name in folders:
            inside(folder, (Path(home) / name).relative_to(folder).as_posix())
        for name in files:
            path = Path(home) / name
            relative = path.relative_to(folder).as_posix()
            unfinished = relative.startswith(f".{MANIFEST}.")
            if inside(folder, relative).is_file() and relative != MANIFEST and not unfinished:
                found.append(relative)
    return sorted(found)


def inside(folder: Path, name: str) -> Path:
    """Returns the path of a checkpoint's file.

    Raises:
        CheckpointError: It lies elsewhere: by `..`, from the root, or by a link.
    """
    relative = PurePosixPath(name)
    path = folder / relative
    lies_within = not relative.is_absolute() and ".." not in relative.parts
    # Path.resolve() raises where links go in a circle.
    if not lies_within or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise CheckpointError(f"{name} leaves {folder}", allowed="files of the checkpoint's folder")
    return path


def write(folder: Path, manifest: Manifest) -> None:
    """Makes a checkpoint a whole one: every file and folder onto the disk, then its manifest.

    Whoever is killed or loses power on the way leaves no manifest, or a whole one of files that are
    there.

    Raises:
        CheckpointError: The manifest lists a path that leaves the folder.
        OSError: The disk is full, or cannot be written.
    """
    homes = {folder.parent, folder}
    for name in manifest.files:
        path = inside(folder, name)
        _sync(path)
        homes |= {folder / home for home in PurePosixPath(name).parents}
    for home in sorted(homes, reverse=True):
        _sync(home)
    written = {field.name: getattr(manifest, field.name) for field in fields(manifest)}
    written["files"] = {
        name: {"num_bytes": record.num_bytes, "xxh3": record.xxh3}
        for name, record in manifest.files.items()
    }
    text = json.dumps(written, indent=2, sort_keys=True, default=dict, allow_nan=False)
    write_atomically(folder / MANIFEST, text.encode() + b"\n")
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(folder: Path) -> Manifest:
    """Returns the manifest of a checkpoint; its files are not looked at.

    Raises:
        CheckpointError: It is missing, or is none, or lists a path that leaves the folder.
    """
    try:
        manifest = parse((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {MANIFEST}: it was not finished") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the manifest of {folder} cannot be read ({error})") from error
    for name in manifest.files:
        inside(folder, name)
    return manifest


def newest(checkpoints: Sequence[Path]) -> Manifest | None:
    """Returns the newest manifest that can be read, of checkpoints oldest first; None of none."""
    for folder in reversed(checkpoints):
        with suppress(CheckpointError):
            return read(folder)
    return None


_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "int": int,
    "str": str,
    "bool": bool,
    "float": (int, float),
}


def parse(content: bytes) -> Manifest:
    """Returns the manifest that a file holds.

    Raises:
        ValueError: It is none.
    """
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError("it is no mapping")
    values: dict[str, Any] = {}
    for field in fields(Manifest):
        if field.name not in found:
            raise ValueError(f"it has no {field.name}")
        value = found[field.name]
        if not isinstance(value, _KINDS.get(str(field.type), dict)):
            raise ValueError(f"its {field.name} is {str(value)[:40]!r}")
        values[field.name] = value
    try:
        values["files"] = {
            name: FileRecord(num_bytes=int(record["num_bytes"]), xxh3=str(record["xxh3"]))
            for name, record in values["files"].items()
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"its files lack {error}") from error
    if not values["files"]:
        raise ValueError("it lists no files")
    return Manifest(**values)
