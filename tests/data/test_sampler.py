"""The order of samples: the same steps for everyone, equal work for every rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from sailplan.data.balance import Work
from sailplan.data.extent import extent_of
from sailplan.data.sampler import Samples, StepSampler

WORK = Work(attention=1 / 768, image_token=2.0)


class Done:
    """The steps that are done, as a trainer's state says them."""

    steps = 0

    def __call__(self) -> int:
        return self.steps


def drawn(count: int, seed: int = 0) -> Samples:
    chance = np.random.default_rng(seed)
    lengths = np.clip(chance.lognormal(6, 0.8, count), 8, 8000).astype(np.int64)
    images = chance.integers(0, 3, count) * lengths // 4
    return Samples(lengths=lengths, image_tokens=images, work=WORK)


def sampler(
    samples: Samples, *, rank: int = 0, ranks: int = 1, step_samples: int = 12, **changes: Any
) -> StepSampler:
    settings: dict[str, Any] = {
        "packs": True,
        "accumulation": 1,
        "seed": 42,
        "step": lambda: 0,
        "drop_last": False,
        **changes,
    }
    return StepSampler(samples, rank=rank, ranks=ranks, step_samples=step_samples, **settings)


def steps_of(samples: Samples, ranks: int, accumulation: int, **changes: Any) -> list[Any]:
    """An epoch, `[step][rank][micro batch]`."""
    settings = {"ranks": ranks, "accumulation": accumulation, **changes}
    of_ranks = [list(sampler(samples, rank=rank, **settings)) for rank in range(ranks)]
    assert len({len(of_rank) for of_rank in of_ranks}) == 1, "each rank has as many micro batches"
    assert len(of_ranks[0]) == len(sampler(samples, **settings))
    starts = range(0, len(of_ranks[0]), accumulation)
    return [[of_rank[start : start + accumulation] for of_rank in of_ranks] for start in starts]


def flat(step: list[list[list[int]]]) -> list[int]:
    return sorted(index for rank in step for micro_batch in rank for index in micro_batch)


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_sample_is_trained_once_an_epoch_whatever_is_left_for_its_last_step(
    ranks: int, accumulation: int, packs: bool
) -> None:
    for count in range(24, 37):  # tails of none to eleven
        samples = drawn(count)
        found = steps_of(samples, ranks, accumulation, packs=packs)

        assert sorted(index for step in found for index in flat(step)) == list(range(count))
        assert [len(flat(step)) for step in found[:-1]] == [12] * (len(found) - 1)
        empty = sum(not micro_batch for rank in found[-1] for micro_batch in rank)
        assert empty == max(0, ranks * accumulation - len(flat(found[-1])))


def test_steps_have_the_same_samples_packed_or_padded_on_any_number_of_ranks() -> None:
    samples = drawn(40)
    expected = [flat(step) for step in steps_of(samples, 1, 1)]

    for ranks, accumulation in ((1, 3), (2, 1), (2, 3), (3, 4), (12, 1)):
        for packs in (True, False):
            found = steps_of(samples, ranks, accumulation, packs=packs)
            assert [flat(step) for step in found] == expected


def test_fewer_samples_than_a_step_make_one() -> None:
    (step,) = steps_of(drawn(5), 2, 3)
    assert flat(step) == [0, 1, 2, 3, 4]


def test_order_follows_from_seed_and_epoch() -> None:
    samples = drawn(36)  # three steps an epoch
    done = Done()

    def order(seed: int = 42) -> list[list[int]]:
        return list(sampler(samples, seed=seed, step=done))

    first, other = order(), order(seed=7)
    assert order() == first != other
    done.steps = 2
    assert order() == first
    done.steps = 3
    second = order()
    assert second != first
    done.steps = 5
    assert order() == second


def test_order_is_that_of_the_data_where_it_is_not_shuffled() -> None:
    found = steps_of(drawn(30), 2, 1, seed=None, step_samples=10)
    assert [flat(step) for step in found] == [
        list(range(start, start + 10)) for start in (0, 10, 20)
    ]


def test_rest_is_left_out_where_asked() -> None:
    found = steps_of(drawn(31), 2, 2, drop_last=True)
    assert [len(flat(step)) for step in found] == [12, 12]


def test_ranks_have_equal_work_in_every_micro_batch() -> None:
    samples = drawn(960)
    costs = WORK.of(samples.lengths, samples.image_tokens)

    def spread(steps: list[Any]) -> float:
        of_slots = np.array(
            [[[costs[micro].sum() for micro in rank] for rank in step] for step in steps]
        )
        return float(np.median(np.ptp(of_slots, axis=1) / of_slots.mean(axis=1)))

    dealt = steps_of(samples, 4, 2, step_samples=64)
    order = np.random.default_rng(0).permutation(960)
    by_chance = order.reshape(15, 4, 2, 8).tolist()

    assert spread(dealt) < 0.1
    assert spread(dealt) < spread(by_chance) / 5


def test_padded_micro_batches_hold_samples_of_like_length() -> None:
    samples = drawn(960)

    def share_of_padding(steps: list[Any]) -> float:
        rows = [micro for step in steps for rank in step for micro in rank]
        held = sum(len(micro) * samples.lengths[micro].max() for micro in rows)
        return 1 - float(samples.lengths.sum() / held)

    dealt = steps_of(samples, 2, 2, step_samples=32, packs=False)
    by_chance = np.random.default_rng(0).permutation(960).reshape(30, 2, 2, 8).tolist()
    assert share_of_padding(dealt) < share_of_padding(by_chance) / 2


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("seed", [42, None], ids=["shuffled", "in_order"])
def test_largest_row_is_that_of_the_whole_run(seed: int | None, drop_last: bool) -> None:
    for count in (3, 100, 1201, 5000)[drop_last:]:
        samples = drawn(count)
        done = Done()
        settings = {"ranks": 2, "accumulation": 2, "step_samples": 16, "drop_last": drop_last}
        of_ranks = [
            sampler(samples, rank=rank, seed=seed, step=done, **settings) for rank in range(2)
        ]
        found = [0]
        for epoch in range(3):
            done.steps = epoch * of_ranks[0].num_global_batches
            rows = [micro_batch for of_rank in of_ranks for micro_batch in of_rank]
            found += [int(samples.lengths[row].sum()) for row in rows]

        assert extent_of(of_ranks[0], 3).tokens == max(found)


def test_samples_are_read_from_the_columns_of_encoded_rows() -> None:
    rows = Dataset.from_dict({"length": [5, 7], "image_tokens": [0, 4], "place": ["a", "b"]})
    found = Samples.of(rows, WORK)
    assert (found.lengths.tolist(), found.image_tokens.tolist()) == ([5, 7], [0, 4])
