"""The cost of padding, and of packing, against batches and sequences that are really made."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from sailplan.inspect.padding import best_fit, padding_of


def lengths_of(count: int, most: int = 90) -> np.ndarray:
    chance = random.Random(count)
    return np.array([chance.randrange(1, most) for _ in range(count)])


@pytest.mark.parametrize("multiple", [None, 8])
def test_padding_of_rows_in_order_is_what_batches_have(multiple: int | None) -> None:
    lengths = lengths_of(23)
    cost = 0
    for start in range(0, 23, 4):
        batch = lengths[start : start + 4]
        width = -(-max(batch) // (multiple or 1)) * (multiple or 1)
        cost += sum(width - length for length in batch)

    found = padding_of(lengths, micro_batch_size=4, order="sequential", multiple=multiple)

    assert found.padding_tokens == cost
    assert found.share == pytest.approx(cost / (cost + lengths.sum()))


def test_rows_grouped_by_length_have_less_padding_and_single_ones_none() -> None:
    lengths = lengths_of(2000)
    costs = [
        padding_of(lengths, micro_batch_size=8, order=order).padding_tokens
        for order in ("random", "group_by_length")
    ]
    assert costs[1] < costs[0] / 2
    assert padding_of(lengths, micro_batch_size=1).share == 0


def fit_one_by_one(lengths: np.ndarray, capacity: int) -> int:
    rooms: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(capacity - length)
    return len(rooms)


@pytest.mark.parametrize(("count", "capacity"), itertools.product([1, 7, 60, 400], [90, 128, 1000]))
def test_packing_is_best_fit_decreasing(count: int, capacity: int) -> None:
    lengths = lengths_of(count)
    assert best_fit(lengths, capacity) == fit_one_by_one(lengths, capacity)


def test_packed_sequences_are_as_long_as_the_limit_or_the_longest_batch() -> None:
    lengths = lengths_of(400)
    assert padding_of(lengths, micro_batch_size=4, limit=300).packed_length_tokens == 300
    found = padding_of(lengths, micro_batch_size=4)
    assert found.packed_length_tokens == lengths.max() * 4
    assert 0.9 < found.packed_fill <= 1
