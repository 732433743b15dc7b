"""Carries out a proven plan: the files, then the index, then the journal's end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sailplan.checkpoint import safetensors
from sailplan.checkpoint.hub_folder import INDEX
from sailplan.errors import CheckpointError, OutputError
from sailplan.files import write_atomically
from sailplan.merge.journal import Journal, key_of
from sailplan.merge.reader import Reader
from sailplan.merge.stream import PART_SUFFIX, read_back, sync_folder, write_shard
from sailplan.merge.tensor_plan import Shard

WORKERS = 2
"""Chunks that are read, computed and written at once where nothing else is asked for."""


def write(
    shards: Sequence[Shard],
    folder: Path,
    *,
    options: Mapping[str, object] | None = None,
    beside: Mapping[str, bytes] | None = None,
    workers: int = WORKERS,
    check_finite: bool = False,
    on_bytes: Callable[[int], object] = lambda _: None,
) -> dict[str, str]:
    """Writes a model's weights into `folder`, going on where a killed merge stopped.

    Args:
        shards: What is written, proven by `tensor_plan.prove`.
        folder: Where; made where missing. What else lies in it is left alone.
        options: What else decides about the bytes, for the journal's key.
        beside: Other files by their paths in the folder; they are there before the weights.
        workers: Chunks at once.
        check_finite: Refuse values that are not finite.
        on_bytes: Told of written bytes as they come, and of those found written already.

    Returns:
        The digest of each file by its name.

    Raises:
        CheckpointError: An input cannot be read.
        OutputError: The folder cannot be written, is too small, holds an input, or holds another
            merge that was not finished.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        key = key_of(shards, options or {})
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}") from error
    _refuse_inputs(shards, folder)
    journal = Journal.open(folder, key)
    kept: set[str] = set()
    for shard in shards:
        if _is_whole(shard, folder, journal):
            kept.add(shard.name)
            on_bytes(shard.num_bytes)
    _check_room([shard for shard in shards if shard.name not in kept], folder)
    journal.begin()
    _put_beside(beside or {}, folder)
    digests: dict[str, str] = {}
    with Reader() as reader, ThreadPoolExecutor(workers) as pool:
        for shard in shards:
            if shard.name in kept:
                digests[shard.name] = journal.finished[shard.name]
                continue
            digests[shard.name] = write_shard(
                shard,
                folder,
                reader=reader,
                pool=pool,
                workers=workers,
                check_finite=check_finite,
                on_bytes=on_bytes,
            )
            journal = journal.with_file(shard.name, digests[shard.name])
    if len(shards) > 1:
        sizes = ((s.name, {t.name: t.num_bytes for t in s.tensors}) for s in shards)
        write_atomically(folder / INDEX, safetensors.index(sizes))
        sync_folder(folder)
    journal.close()
    return digests


def verify(
    shards: Sequence[Shard],
    folder: Path,
    digests: Mapping[str, str],
    on_bytes: Callable[[int], object] = lambda _: None,
) -> None:
    """Reads every file back and compares it with what was written.

    Raises:
        CheckpointError: The disk returns something else.
    """
    for shard in shards:
        if read_back(shard, folder / shard.name, on_bytes) != digests[shard.name]:
            raise CheckpointError(
                f"{folder / shard.name} reads back otherwise than it was written",
                todo="check the disk, and merge again into another folder",
            )


def _put_beside(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _is_whole(shard: Shard, folder: Path, journal: Journal) -> bool:
    path = folder / shard.name
    if shard.name not in journal.finished or not path.is_file():
        return False
    try:
        return read_back(shard, path) == journal.finished[shard.name]
    except CheckpointError:
        return False


def _refuse_inputs(shards: Sequence[Shard], folder: Path) -> None:
    """An output folder that holds an input would be overwritten while it is read."""
    home = folder.resolve()
    for shard in shards:
        for plan in shard.tensors:
            for segment in plan.source.segments:
                if segment.file.resolve().parent == home:
                    raise OutputError(
                        f"{folder} holds {segment.file.name}, which is an input",
                        todo="choose another output folder",
                    )


def _check_room(shards: Sequence[Shard], folder: Path) -> None:
    needed = sum(shard.num_bytes for shard in shards)
    left_over = sum(path.stat().st_size for path in folder.glob(f".*{PART_SUFFIX}"))
    free = shutil.disk_usage(folder).free + left_over
    if needed > free:
        raise OutputError(
            f"{folder} has room for {free / 2**30:.2f} GiB, the model takes {needed / 2**30:.2f}",
            todo="make room, or choose another output folder",
        )
