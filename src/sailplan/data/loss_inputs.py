"""What of a batch the loss needs: the positions that predict something, and what they predict.

Found in the DataLoader's workers, so that the LM head, which on a small vocabulary-bound model is
the dearest layer, can be computed where a label is and nowhere else, and no GPU waits for a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from sailplan.data.labels import UNTRAINED

HEAD_POSITIONS, LABEL_ROWS, NUM_ROWS = "head_positions", "label_rows", "num_rows"
"""What `take_out` takes out of a batch before the model sees it."""


class Taken(NamedTuple):
    """What of a batch is no input of the model; see `LossInputs`."""

    positions: torch.Tensor
    label_rows: torch.Tensor
    num_rows: int


def take_out(batch: dict[str, Any]) -> Taken:
    """Takes out of a batch what `LossInputs` added for the trainer alone."""
    return Taken(*(batch.pop(name) for name in (HEAD_POSITIONS, LABEL_ROWS, NUM_ROWS)))


@dataclass(frozen=True, kw_only=True, slots=True)
class LossInputs:
    """A collator whose batches say what the head has to be computed for."""

    collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]
    """The collator."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns the batch with `shift_labels`, `head_positions`, `label_rows` and `num_rows`.

        `shift_labels` are the labels alone, `[1, labels]`; `head_positions` the tokens before them,
        counted through the flattened batch, `[labels]`; `label_rows` the sample that each belongs
        to, `[labels]`; `num_rows` the samples. There is one label at least: a batch in which
        nothing is trained on has one that is not counted.
        """
        batch: dict[str, Any] = self.collate(rows)
        labels = batch["labels"]
        following = torch.full_like(labels, UNTRAINED)
        following[:, :-1] = labels[:, 1:]
        following = following.flatten()
        positions = (following != UNTRAINED).nonzero().flatten()
        if not len(positions):
            positions = torch.zeros(1, dtype=torch.long)
        batch["shift_labels"] = following[positions][None]
        batch[HEAD_POSITIONS] = positions
        batch[LABEL_ROWS] = torch.bucketize(positions, _row_ends(batch), right=True)
        batch[NUM_ROWS] = len(rows)
        return batch


def _row_ends(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns where each sample but the last ends, counted through the flattened batch."""
    rows, tokens = batch["labels"].shape
    if "attention_mask" in batch:
        return torch.arange(1, rows) * tokens
    plain = batch["position_ids"].reshape(-1, tokens)[0]
    return (plain[1:] == 0).nonzero().flatten() + 1
