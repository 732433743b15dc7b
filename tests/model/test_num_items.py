"""The loss of every family is a sum over its labels, divided by what the trainer says.

A step of several micro batches, on several ranks, has the loss of one batch only where each model
divides by `num_items_in_batch` and not by the labels that it happens to see.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.packed import Setting, num_trained
from tests.support.tiny import MORE_FAMILIES, TEXT_FAMILIES, VISION_FAMILIES


@pytest.mark.parametrize("family", [*VISION_FAMILIES, *MORE_FAMILIES, *TEXT_FAMILIES])
def test_loss_is_divided_by_the_items_that_the_trainer_counts(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    subject = Setting.load(tiny_model(family))
    rows = [subject.row("Two.", (56, 56)), subject.row("A red square on white.", (60, 40))]
    batch, count = subject.collate(packs=False)(rows), num_trained(rows)

    with torch.no_grad():
        mean = subject.model(**batch, use_cache=False).loss
        counted = subject.model(**batch, use_cache=False, num_items_in_batch=count).loss
        tenth = subject.model(**batch, use_cache=False, num_items_in_batch=10 * count).loss

    torch.testing.assert_close(counted, mean)
    torch.testing.assert_close(tenth, mean / 10)
