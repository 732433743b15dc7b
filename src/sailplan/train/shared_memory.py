"""Batches on their way from workers lie in /dev/shm: how many there is room for.

Where it is full, a worker's thread dies and the run waits for its batch for ever (torch 2.14), or
ends in a bus error. A container has 64 MB of it unless told otherwise.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sailplan.sizes import shown_bytes

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - it is what is looked at

DEEPSPEED_BYTES = 66 << 20
"""A rank's workspace of DeepSpeed's communication on the CPU: twice 32 MiB, and twice 1 MiB
(deepspeed 0.19, csrc/cpu/comm/shm.cpp)."""

PREFETCHED = 2
"""Batches that each worker is ahead; torch's default."""

MORE_SHARED_MEMORY = (
    "start the container with --shm-size=16g (or --ipc=host), or remount /dev/shm with size=…"
)
"""What to do where there is too little."""

_USABLE = 0.8
"""The part of what is free that batches may take; others write there too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InFlight:
    """What a rank has of batches at once, where it is most."""

    batch_bytes: int
    """The largest batch."""
    held: int
    """Batches that have come and are not let go: on a CPU those of a step, and the next."""
    loaders: int = 1
    """DataLoaders whose workers are ahead at once: of training, and of an evaluation."""

    def bytes_of(self, workers: int, ahead: int) -> int:
        """Returns the bytes of some workers that are each some batches ahead."""
        return (self.loaders * workers * ahead + self.held) * self.batch_bytes if workers else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """How many workers have room, and why not all."""

    workers: int
    ahead: int
    """Batches that each is ahead."""
    why: str
    """What was missing, and what to do, where it is fewer than was wanted."""


def free_bytes(path: Path = SHARED_MEMORY) -> int:
    """Returns what is free of it; 0 where there is none."""
    try:
        found = os.statvfs(path)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def room_for(workers: int, ahead: int, batches: InFlight, free: int) -> Room:
    """Returns how many of the wanted workers there is room for, rather less ahead than fewer.

    Args:
        workers: What is wanted.
        ahead: Batches that each should be ahead.
        batches: What they take.
        free: Bytes of shared memory that this rank may have.
    """
    usable = int(_USABLE * free)
    if batches.bytes_of(workers, ahead) <= usable:
        return Room(workers=workers, ahead=ahead, why="")
    fits = [
        (count, ahead_of_each)
        for count in range(workers, 0, -1)
        for ahead_of_each in range(ahead, 0, -1)
        if batches.bytes_of(count, ahead_of_each) <= usable
    ]
    count, ahead_of_each = fits[0] if fits else (0, ahead)
    why = (
        f"{SHARED_MEMORY} has {shown_bytes(free)} for this rank, and {workers} workers with "
        f"batches of {shown_bytes(batches.batch_bytes)} need "
        f"{shown_bytes(int(batches.bytes_of(workers, ahead) / _USABLE))}; {MORE_SHARED_MEMORY}"
    )
    return Room(workers=count, ahead=ahead_of_each, why=why)
