"""How many ranks there are around this one, and one small exchange of numbers between all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


def local_ranks() -> int:
    """Returns the number of ranks on this machine, which share its cores and its memory."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def of_all_ranks(accelerator: Accelerator, numbers: Sequence[float]) -> np.ndarray:
    """Returns the numbers of every rank, `[ranks, numbers]`; all ranks must ask at once.

    Args:
        accelerator: The trainer's.
        numbers: This rank's, as many on each.
    """
    if accelerator.num_processes == 1:
        return np.array([numbers], dtype=np.float64)
    own = torch.tensor([numbers], dtype=torch.float64, device=accelerator.device)
    return np.asarray(accelerator.gather(own).cpu())
