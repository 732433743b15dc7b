"""Room on the disk: looked at before a checkpoint is begun, and told apart where it ran out."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailplan.errors import OutputError
from sailplan.sizes import shown_bytes

if TYPE_CHECKING:
    import torch

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = re.compile(r"no space left|disk quota exceeded|os error (28|122)\b", re.IGNORECASE)
_WRITE_FAILED = re.compile(r"PytorchStreamWriter|file write failed|unexpected pos", re.IGNORECASE)
_SPARE_BYTES = 1 << 20
"""A disk with less left than this was full, whatever torch says of its failed write."""


def bytes_at_least(model: torch.nn.Module, *, adapter: bool, masters: bool) -> int:
    """Returns what a model's first checkpoint takes at least.

    Args:
        model: The model; under ZeRO-3 its parameters know their whole size.
        adapter: Whether only what trains is saved.
        masters: Whether the optimizer keeps float32 weights of its own.
    """
    weights = states = 0
    for parameter in model.parameters():
        numel = int(getattr(parameter, "ds_numel", parameter.numel()))
        if parameter.requires_grad:
            states += numel * (12 if masters else 4)  # 4: 8-bit optimizers keep two bytes
        if parameter.requires_grad or not adapter:
            weights += numel * min(2, parameter.element_size())
    return weights + states


def check_room(folder: Path, wanted: int) -> None:
    """Refuses to begin a checkpoint that has no room.

    Args:
        folder: The checkpoint.
        wanted: Its bytes.

    Raises:
        OutputError: Its disk has fewer bytes left.
    """
    free = shutil.disk_usage(folder.parent).free
    if free < wanted:
        raise OutputError(
            f"{folder.name} takes {shown_bytes(wanted)}, and {folder.parent} has "
            f"{shown_bytes(free)} left",
            todo="make room and start the run again: it goes on from its last checkpoint",
        )


def full_disk(error: BaseException, folder: Path) -> OutputError | None:
    """Returns the error that a user can act on where a save failed for want of room, else None.

    Args:
        error: What the save raised.
        folder: The checkpoint that was being saved.
    """
    if not any(_says_full(one, folder) for one in _chain(error)):
        return None
    return OutputError(
        f"the disk is full: {folder.name} could not be saved to {folder.parent}",
        todo="make room and start the run again: it goes on from its last checkpoint",
    )


def _says_full(error: BaseException, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    text = str(error)
    if _FULL_WORDS.search(text):
        return True
    if not _WRITE_FAILED.search(text):
        return False
    # torch does not say why a write failed.
    return shutil.disk_usage(folder.parent).free < _SPARE_BYTES


def _chain(error: BaseException | None) -> list[Any]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
