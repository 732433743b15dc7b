"""What the loss needs of a batch: the positions before labels, and whose they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sailplan.data.labels import UNTRAINED
from sailplan.data.loss_inputs import HEAD_POSITIONS, LABEL_ROWS, NUM_ROWS, LossInputs

X = UNTRAINED
SAMPLES = [[X, 5, 6], [X, X], [X, X, 7, 8, X]]


def padded(rows: Any) -> dict[str, torch.Tensor]:
    length = max(map(len, rows))
    labels = [[*row, *[X] * (length - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
    return {"labels": torch.tensor(labels), "attention_mask": torch.tensor(mask)}


def packed(rows: Any, *, deep: bool = False) -> dict[str, torch.Tensor]:
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    if deep:  # text first, then three dimensions in which an image's positions are alike
        positions = torch.cat([positions[None], torch.zeros(3, *positions.shape, dtype=torch.long)])
    labels = torch.tensor([[label for row in rows for label in row]])
    return {"labels": labels, "position_ids": positions}


@pytest.mark.parametrize(
    ("collate", "positions"),
    [
        (padded, [0, 1, 11, 12]),
        (packed, [0, 1, 6, 7]),
        (lambda rows: packed(rows, deep=True), [0, 1, 6, 7]),
    ],
    ids=["padded", "packed", "mrope"],
)
def test_positions_are_those_before_labels_and_belong_to_their_samples(
    collate: Any, positions: list[int]
) -> None:
    batch = LossInputs(collate=collate)(SAMPLES)  # type: ignore[arg-type]

    assert batch["shift_labels"].tolist() == [[5, 6, 7, 8]]
    assert batch[HEAD_POSITIONS].tolist() == positions
    assert batch[LABEL_ROWS].tolist() == [0, 0, 2, 2]
    assert batch[NUM_ROWS] == 3


@pytest.mark.parametrize("collate", [padded, packed])
def test_batch_without_labels_has_one_that_is_not_counted(collate: Any) -> None:
    batch = LossInputs(collate=collate)([[X, X, X], [X]])  # type: ignore[arg-type]

    assert batch["shift_labels"].tolist() == [[X]]
    assert batch[HEAD_POSITIONS].tolist() == [0]
    assert batch[LABEL_ROWS].tolist() == [0]


def test_last_token_of_a_row_predicts_nothing_of_the_next() -> None:
    # A collator masks first labels; were one left, the token before it would be trained on it.
    batch = LossInputs(collate=packed)([[X, 5], [X, 6]])  # type: ignore[arg-type]
    assert batch[HEAD_POSITIONS].tolist() == [0, 2]
