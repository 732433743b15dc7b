"""Writes planned tensors into safetensors files, a few megabytes at a time.

Each file is written aside, synced and renamed, so that a file of its final name is whole. Pieces of
one file are read, computed and written by several threads; what a thread holds is bounded by
`CHUNK_BYTES`, whatever the size of the model. Nothing is mapped into memory: pages of a mapped file
would count as this process's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import xxhash

from sailplan.checkpoint import safetensors
from sailplan.checkpoint.stored import ITEM_BYTES, Segment, part_of
from sailplan.errors import CheckpointError, OutputError
from sailplan.merge.reader import Reader
from sailplan.merge.tensor_plan import Shard, TensorPlan

CHUNK_BYTES = 1 << 20
"""Of the input or the output, whichever is larger, that is in memory at once in each thread.

So much, and what is computed from it, stays in the processor's caches.
"""
_READ_AHEAD = 16
"""Chunks that the system is told of before they are read."""

PART_SUFFIX = ".part"
"""The end of the name of a file that is being written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Neighbouring elements of a tensor, and where they belong in the file."""

    plan: TensorPlan
    """The tensor."""
    start: int
    """The first of its elements."""
    count: int
    """The number of them."""
    offset: int
    """Where they begin in the output file, in bytes."""

    @property
    def num_bytes(self) -> int:
        """Their bytes in the output."""
        return self.count * ITEM_BYTES[self.plan.dtype]


def chunks(shard: Shard) -> tuple[bytes, list[Chunk]]:
    """Returns the head of a shard's file and the chunks behind it, in the order of the file."""
    head, begins = safetensors.layout({t.name: (t.dtype, t.shape) for t in shard.tensors})
    plans = sorted(shard.tensors, key=lambda plan: begins[plan.name])
    return head, [chunk for plan in plans for chunk in _cut(plan, begins[plan.name])]


def _cut(plan: TensorPlan, begin: int) -> Iterator[Chunk]:
    """Cuts a tensor into chunks, of whole rows where an adapter is added to it."""
    widest = max(ITEM_BYTES[plan.dtype], *(ITEM_BYTES[s.dtype] for s in plan.source.segments), 1)
    size = CHUNK_BYTES // widest
    if plan.delta is not None:
        size = max(1, size // plan.delta.columns) * plan.delta.columns
    for start in range(0, plan.source.numel, max(size, 1)):
        yield Chunk(
            plan=plan,
            start=start,
            count=min(size, plan.source.numel - start),
            offset=begin + start * ITEM_BYTES[plan.dtype],
        )


def compute(chunk: Chunk, reader: Reader, *, check_finite: bool = False) -> memoryview:
    """Returns a chunk's bytes as they are written.

    Raises:
        CheckpointError: An input cannot be read, or a value is not finite.
    """
    plan = chunk.plan
    weight = reader.read(part_of(plan.source.segments, chunk.start, chunk.count), reuse=True)
    if plan.delta is not None:
        rows = weight.view(-1, plan.delta.columns)
        weight = plan.delta.rows(rows, chunk.start // plan.delta.columns).reshape(-1)
    weight = weight.to(getattr(torch, plan.dtype))
    if check_finite and weight.is_floating_point() and not weight.isfinite().all():
        raise CheckpointError(
            f"{plan.name} would hold values that are not finite",
            todo="the training went wrong, or the dtype is too narrow: take an earlier checkpoint,"
            " or write --dtype float32",
        )
    return weight.view(torch.uint8).numpy().data


def write_shard(
    shard: Shard,
    folder: Path,
    *,
    reader: Reader,
    pool: ThreadPoolExecutor,
    workers: int,
    check_finite: bool = False,
    on_bytes: Callable[[int], object] = lambda _: None,
) -> str:
    """Writes one file, and returns its digest; the file has its name only when it is whole.

    Args:
        shard: What it holds.
        folder: Where it goes.
        reader: Reads the inputs.
        pool: Runs the chunks.
        workers: How many of them at once.
        check_finite: Refuse values that are not finite.
        on_bytes: Told of written bytes as they come.

    Raises:
        CheckpointError: An input cannot be read.
        OutputError: The file cannot be written, such as where the disk is full.
    """
    head, parts = chunks(shard)
    temporary = folder / f".{shard.name}{PART_SUFFIX}"
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            _put(descriptor, memoryview(head), 0)
            digests = _write_chunks(
                descriptor,
                parts,
                reader,
                partial(compute, reader=reader, check_finite=check_finite),
                pool,
                workers,
                on_bytes,
            )
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(folder / shard.name)
        sync_folder(folder)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder / shard.name}: {error.strerror}",
            todo="make room and run the same command again: finished files are kept",
        ) from error
    return _digest(head, digests)


def _write_chunks(
    descriptor: int,
    parts: Sequence[Chunk],
    reader: Reader,
    content_of: Callable[[Chunk], memoryview],
    pool: ThreadPoolExecutor,
    workers: int,
    on_bytes: Callable[[int], object],
) -> list[int]:
    """Writes chunks in parallel, a few ahead at most, and returns each one's digest, in order."""

    def write(chunk: Chunk) -> int:
        content = content_of(chunk)
        _put(descriptor, content, chunk.offset)
        # It begins to write them to the disk, so that the sync at the end is short.
        os.posix_fadvise(descriptor, chunk.offset, len(content), os.POSIX_FADV_DONTNEED)
        on_bytes(len(content))
        return xxhash.xxh3_64_intdigest(content)

    digests: dict[int, int] = {}
    running: dict[Future[int], int] = {}
    try:
        for number, chunk in enumerate(parts):
            for ahead in parts[number + _READ_AHEAD : number + _READ_AHEAD + 1]:
                segments = ahead.plan.source.segments
                reader.announce(part_of(segments, ahead.start, ahead.count))
            if len(running) >= 2 * workers:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                digests |= {running.pop(future): future.result() for future in done}
            running[pool.submit(write, chunk)] = number
        digests |= {number: future.result() for future, number in running.items()}
    finally:
        for future in running:
            future.cancel()
        wait(running)
    return [digests[number] for number in range(len(parts))]


def read_back(shard: Shard, path: Path, on_bytes: Callable[[int], object] = lambda _: None) -> str:
    """Returns the digest of a written file, read from the disk, to compare with `write_shard`'s.

    Raises:
        OSError: It cannot be read.
        CheckpointError: It is shorter than the shard.
    """
    head, parts = chunks(shard)
    with Reader() as reader:

        def content(offset: int, num_bytes: int) -> torch.Tensor:
            segment = Segment(file=path, offset=offset, count=num_bytes, dtype="uint8")
            return reader.read([segment])

        digests: list[int] = []
        for chunk in parts:
            part = content(chunk.offset, chunk.num_bytes)
            digests.append(xxhash.xxh3_64_intdigest(part.numpy().data))
            on_bytes(chunk.num_bytes)
        return _digest(content(0, len(head)).numpy().tobytes(), digests)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(head: bytes, digests: Sequence[int]) -> str:
    digest = xxhash.xxh3_128(head)
    for one in digests:
        digest.update(one.to_bytes(8, "little"))
    return digest.hexdigest()


def _put(descriptor: int, content: memoryview, offset: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(descriptor, content[done:], offset + done)
