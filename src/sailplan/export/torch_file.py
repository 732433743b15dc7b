"""Writes a file that `torch.load` reads, tensor by tensor, a few megabytes at a time."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sailplan.checkpoint import hub_folder
from sailplan.errors import OutputError
from sailplan.merge.reader import Reader
from sailplan.merge.stream import PART_SUFFIX, chunks, compute, sync_folder
from sailplan.merge.tensor_plan import Shard, TensorPlan

_CRC_IN_LOCAL, _CRC_IN_CENTRAL = 14, 16
"""Where a zip's two headers of an entry hold its checksum (APPNOTE 4.3.7 and 4.3.12)."""
_CENTRAL_BYTES, _CENTRAL_LENGTHS = 46, 28


def write_torch_file(
    plans: Sequence[TensorPlan], path: Path, *, on_bytes: Callable[[int], object] = lambda _: None
) -> None:
    """Writes planned tensors as a mapping of names; the file has its name only when it is whole.

    torch writes the file with holes in place of the values (`torch.serialization.skip_data`); they
    are filled in here, and the archive's checksums with them.

    Args:
        plans: The tensors, proven.
        path: The file.
        on_bytes: Told of written bytes as they come.

    Raises:
        CheckpointError: An input cannot be read.
        OutputError: The file cannot be written, such as where the disk is full.
    """
    temporary = path.with_name(f".{path.name}{PART_SUFFIX}")
    try:
        with FakeTensorMode():
            empty = {
                plan.name: torch.empty(plan.shape, dtype=getattr(torch, plan.dtype))
                for plan in plans
            }
        with (
            torch.serialization.skip_data(materialize_fake_tensors=True),
            temporary.open("wb") as f,
        ):
            torch.save(empty, f)
        _fill(plans, temporary, on_bytes)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}", todo="make room and run it again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _fill(plans: Sequence[TensorPlan], path: Path, on_bytes: Callable[[int], object]) -> None:
    """Puts the values into the holes."""
    stored = hub_folder.tensors_of(path)
    checksums: dict[int, int] = {}
    with path.open("r+b") as file, Reader() as reader:
        for plan in plans:
            _, parts = chunks(Shard(name="", tensors=(plan,)))
            begin, checksum = stored[plan.name].offset, 0
            position = begin
            for part in parts:
                content = compute(part, reader)
                os.pwrite(file.fileno(), content, position)
                checksum = zlib.crc32(content, checksum)
                position += len(content)
                on_bytes(len(content))
            checksums[begin] = checksum
        _set_checksums(path, file.fileno(), checksums)
        os.fsync(file.fileno())


def _set_checksums(path: Path, descriptor: int, checksums: dict[int, int]) -> None:
    """Writes the checksums of entries, by where their contents begin."""
    with zipfile.ZipFile(path) as archive:
        entries, position = archive.infolist(), archive.start_dir
    for entry in entries:
        head = os.pread(descriptor, 30, entry.header_offset)
        name_bytes, extra_bytes = struct.unpack("<HH", head[26:30])
        begin = entry.header_offset + 30 + name_bytes + extra_bytes
        central = os.pread(descriptor, _CENTRAL_BYTES, position)
        if begin in checksums and entry.file_size:
            new = struct.pack("<I", checksums[begin])
            os.pwrite(descriptor, new, entry.header_offset + _CRC_IN_LOCAL)
            os.pwrite(descriptor, new, position + _CRC_IN_CENTRAL)
            if entry.flag_bits & 8:  # a descriptor behind the content holds it once more
                os.pwrite(descriptor, new, begin + entry.file_size + 4)
        lengths = struct.unpack("<HHH", central[_CENTRAL_LENGTHS : _CENTRAL_LENGTHS + 6])
        position += _CENTRAL_BYTES + sum(lengths)
