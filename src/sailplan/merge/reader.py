"""Reads ranges of files, by several threads, without mapping them into memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from sailplan.checkpoint.stored import Segment
from sailplan.errors import CheckpointError


class Reader:
    """Reads ranges of many files; each stays open. Several threads may read at once."""

    def __init__(self) -> None:
        self._stack, self._lock = ExitStack(), threading.Lock()
        self._descriptors: dict[Path, int] = {}
        self._local = threading.local()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def descriptor(self, path: Path) -> int:
        """Returns a descriptor of the file.

        Raises:
            CheckpointError: It cannot be opened.
        """
        with self._lock:
            if path not in self._descriptors:
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
                self._stack.callback(os.close, descriptor)
                self._descriptors[path] = descriptor
            return self._descriptors[path]

    def read(self, segments: Sequence[Segment], *, reuse: bool = False) -> torch.Tensor:
        """Returns the elements of segments of one dtype, `[elements]`.

        Args:
            segments: Where they lie.
            reuse: Read into this thread's own buffer: they stay until its next such call.
        """
        num_bytes = sum(segment.num_bytes for segment in segments)
        buffer = self._own_buffer(num_bytes) if reuse else bytearray(num_bytes)
        view, position = memoryview(buffer), 0
        for segment in segments:
            part = view[position : position + segment.num_bytes]
            self._fill(segment.file, segment.offset, part)
            position += segment.num_bytes
        dtype = getattr(torch, segments[0].dtype)
        if not num_bytes:
            return torch.empty(0, dtype=dtype)
        count = sum(segment.count for segment in segments)
        return torch.frombuffer(buffer, dtype=dtype, count=count)

    def announce(self, segments: Sequence[Segment]) -> None:
        """Tells the system what will be read soon."""
        for segment in segments:
            os.posix_fadvise(
                self.descriptor(segment.file),
                segment.offset,
                segment.num_bytes,
                os.POSIX_FADV_WILLNEED,
            )

    def _own_buffer(self, num_bytes: int) -> bytearray:
        buffer: bytearray | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < num_bytes:
            buffer = self._local.buffer = bytearray(num_bytes)
        return buffer

    def _fill(self, path: Path, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            count = os.preadv(self.descriptor(path), [view[done:]], offset + done)
            if count == 0:
                raise CheckpointError(f"{path} became shorter while it was read")
            done += count
