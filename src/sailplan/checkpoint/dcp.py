"""Reads torch's distributed checkpoints, in which accelerate saves a model under FSDP.

A folder holds `.metadata`, a pickle, and one `__R_N.distcp` file a rank and writer. The metadata
say which box of which tensor lies where: each is what `torch.save` wrote, in a part of a file.
accelerate puts the model under `model.`. Layout as in torch 2.14, `torch.distributed.checkpoint`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from sailplan.checkpoint import torch_zip
from sailplan.checkpoint.inert import Inert, InertUnpickler
from sailplan.checkpoint.stored import ITEM_BYTES, Pieces, Segment, StoredTensor
from sailplan.errors import CheckpointError

METADATA = ".metadata"
_NESTED = "model."
_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")
_INCOMPLETE = "the checkpoint is incomplete: take the one before it"


@dataclass(frozen=True, kw_only=True, slots=True)
class DcpCheckpoint:
    """The weights of a distributed checkpoint, under the names of the module that was trained."""

    folder: Path
    """The folder."""
    tensors: Mapping[str, Pieces]
    """Its tensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Box:
    """A part of a tensor: where it begins in each dimension, how large it is, and its elements."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    tensor: StoredTensor


def is_dcp(folder: Path) -> bool:
    """Says whether a folder holds a distributed checkpoint."""
    return (folder / METADATA).is_file()


def read(folder: Path) -> DcpCheckpoint:
    """Reads where everything lies; no weights, and no code of a pickle.

    Raises:
        CheckpointError: A file is missing or cut off, the parts do not make up the tensors, or it
            is an optimizer's.
    """
    sizes, places = _metadata(folder)
    nested = all(name.startswith(_NESTED) for name in sizes) if sizes else False
    if not sizes or all(name.startswith(("optim", "state.", "param_groups")) for name in sizes):
        raise CheckpointError(
            f"{folder} holds no model", allowed="pytorch_model_fsdp_0, or another model's folder"
        )
    tensors: dict[str, Pieces] = {}
    for name, shape in sizes.items():
        boxes = [
            _Box(start=start, shape=stored.shape, tensor=stored)
            for start, stored in _stored(folder, name, places.get(name, []))
        ]
        own = _WRAPPERS.sub("", name.removeprefix(_NESTED) if nested else name)
        tensors[own] = Pieces(shape=shape, segments=tuple(_segments(folder, name, shape, boxes)))
    return DcpCheckpoint(folder=folder, tensors=tensors)


def _metadata(
    folder: Path,
) -> tuple[dict[str, tuple[int, ...]], dict[str, list[tuple[tuple[int, ...], Any]]]]:
    """Returns each tensor's shape, and of each of its parts the start and the place."""
    path = folder / METADATA

    def nowhere(_key: str, _dtype: str, _count: int) -> StoredTensor:
        raise CheckpointError(f"{path} holds tensors: it is no metadata")

    try:
        with path.open("rb") as file:
            content = torch_zip.load(InertUnpickler(file, nowhere, label=str(path)), path)
        state = content.state
        sizes = {
            str(name): tuple(int(size) for size in entry.state["size"])
            for name, entry in state["state_dict_metadata"].items()
            if "size" in (entry.state or {})
        }
        places: dict[str, list[tuple[tuple[int, ...], Any]]] = {}
        for index, place in state["storage_data"].items():
            where, start = place.state, index.state.get("offset")
            shape = sizes.get(index.state["fqn"], ())
            first = tuple(start) if start is not None else (0,) * len(shape)
            places.setdefault(index.state["fqn"], []).append((first, where))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no metadata of torch.distributed.checkpoint ({error!r})",
            todo="get the file again",
        ) from error
    return sizes, places


def _stored(
    folder: Path, name: str, places: Sequence[tuple[tuple[int, ...], Any]]
) -> Iterator[tuple[tuple[int, ...], StoredTensor]]:
    for start, where in places:
        relative = str(where["relative_path"])
        path = folder / relative
        if Path(relative).name != relative:
            raise CheckpointError(f"{folder / METADATA} leads out of its folder: {relative}")
        if where.get("transform_descriptors"):
            raise CheckpointError(f"{path} is compressed", allowed="checkpoints that are not")
        if not path.is_file():
            raise CheckpointError(
                f"{folder} lacks {relative}",
                todo="copy the missing files: each machine wrote those of its own ranks",
            )
        found = torch_zip.read(path, start=int(where["offset"]), num_bytes=int(where["length"]))
        if not isinstance(found, StoredTensor) or not found.is_contiguous:
            kind = found.qualified_name if isinstance(found, Inert) else type(found).__name__
            raise CheckpointError(f"{path}: {name} is no plain tensor, but {kind}")
        yield start, found


def _segments(
    folder: Path, name: str, shape: tuple[int, ...], boxes: Sequence[_Box]
) -> list[Segment]:
    """Puts boxes into row-major order: runs of each, as long as they are whole rows."""
    runs: list[tuple[int, Segment]] = []
    for box in boxes:
        if len(box.shape) != len(shape) or any(
            low < 0 or low + size > full
            for low, size, full in zip(box.start, box.shape, shape, strict=True)
        ):
            raise CheckpointError(
                f"{folder}: a part of {name} at {box.start} of {box.shape} lies outside of {shape}"
            )
        runs += _runs(shape, box)
    runs.sort(key=lambda run: run[0])
    position = 0
    for start, segment in runs:
        if start != position:
            what = "two parts overlap" if start < position else "a part is missing"
            raise CheckpointError(f"{folder}: {what} in {name}", todo=_INCOMPLETE)
        position += segment.count
    if position != math.prod(shape):
        raise CheckpointError(f"{folder}: a part is missing in {name}", todo=_INCOMPLETE)
    return [segment for _, segment in runs]


def _runs(shape: tuple[int, ...], box: _Box) -> Iterator[tuple[int, Segment]]:
    """Yields a box's runs: the first element's place in the whole tensor, and where it lies."""
    if not box.tensor.numel:
        return
    inner = len(shape)
    while inner > 0 and box.shape[inner - 1] == shape[inner - 1]:
        inner -= 1
    # The dimension before the whole ones may be cut; what is before that is walked through.
    outer = max(inner - 1, 0)
    length = math.prod(box.shape[outer:])
    strides = [math.prod(shape[index + 1 :]) for index in range(len(shape))]
    base = sum(start * stride for start, stride in zip(box.start, strides, strict=True))
    item_bytes = ITEM_BYTES[box.tensor.dtype]
    for number, place in enumerate(product(*(range(size) for size in box.shape[:outer]))):
        first = base + sum(i * stride for i, stride in zip(place, strides[:outer], strict=True))
        offset = box.tensor.offset + number * length * item_bytes
        yield (
            first,
            Segment(file=box.tensor.file, offset=offset, count=length, dtype=box.tensor.dtype),
        )
