"""The arithmetic of a stream's order: units to slots, draws by share, positions."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from sailplan.data.streaming.order import Position, deal_units, draws_by_share, unit_order


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("units", [0, 1, 2, 3, 7, 8, 20])
@pytest.mark.parametrize("turn", [0, 3])
def test_each_row_of_each_unit_is_dealt_to_one_slot(units: int, slots: int, turn: int) -> None:
    lengths = [17 + unit for unit in range(units)]
    dealt: Counter[tuple[int, int]] = Counter()
    for slot in range(slots):
        shares = deal_units(range(units), slot, slots, turn=turn)
        dealt.update(
            (share.unit, row)
            for share in shares
            for row in range(lengths[share.unit])
            if share.has(row)
        )
        parts = [share for share in shares if share.of > 1]
        assert len(parts) <= 2
        assert sum(share.stop - share.first for share in parts) == units % slots
    assert dealt == Counter((u, row) for u in range(units) for row in range(lengths[u]))


def test_part_of_a_unit_moves_on_so_that_no_slot_is_always_left_without() -> None:
    seen = {
        turn: [deal_units([0], slot, 4, turn=turn)[0].has(0) for slot in range(4)]
        for turn in range(4)
    }
    assert np.asarray(list(seen.values())).sum(axis=0).tolist() == [1, 1, 1, 1]


def test_units_have_another_order_in_each_pass_and_seed() -> None:
    first, second, other = unit_order(50, 1, 0), unit_order(50, 1, 1), unit_order(50, 2, 0)
    assert sorted(first) == sorted(second) == sorted(other) == list(range(50))
    assert first != second
    assert first != other


@pytest.mark.parametrize("count", [1, 2, 10, 1000])
@pytest.mark.parametrize("shares", [(0.7, 0.2, 0.1), (3.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1, 1, 1)])
def test_draws_have_the_shares_to_a_row(shares: tuple[float, ...], count: int) -> None:
    for seed in range(20):
        found = Counter(draws_by_share(shares, count, np.random.default_rng(seed)))
        for entry, share in enumerate(shares):
            assert abs(found[entry] - count * share / sum(shares)) < 1
            assert share or not found[entry]


def test_position_survives_json() -> None:
    position = Position(epoch=2, window=3, offset=4, places=((1, 20), (0, 0)))
    assert Position.from_json(json.loads(json.dumps(position.as_json()))) == position
