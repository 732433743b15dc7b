"""Dealing samples by their work."""

from __future__ import annotations

import numpy as np
import pytest

from sailplan.data.balance import Work, deal, deal_steps


def drawn(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(6, 0.8, count)


def test_work_of_a_sample_counts_attention_and_images() -> None:
    work = Work(attention=0.01, image_token=3.0)
    assert work.of([100, 10], [0, 4]).tolist() == [200.0, 10 * 1.1 + 12]
    assert Work().of([7], [7]).tolist() == [7.0]


@pytest.mark.parametrize("groups", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [8, 9, 31, 64])
def test_every_sample_is_dealt_once_the_heaviest_group_first(count: int, groups: int) -> None:
    work = drawn(count)

    dealt = deal(work, groups)

    assert sorted(sample for group in dealt for sample in group) == list(range(count))
    assert len(dealt) == groups
    assert all(dealt)
    sums = [work[group].sum() for group in dealt]
    assert sums == sorted(sums, reverse=True)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_samples_than_groups_have_one_each(count: int) -> None:
    dealt = deal(drawn(count), 4)
    assert [len(group) for group in dealt] == [1] * count + [0] * (4 - count)


def test_one_sample_that_outweighs_all_others_stands_alone() -> None:
    assert deal([1.0, 1.0, 9.0, 1.0, 1.0], 2) == [[2], [0, 1, 3, 4]]


def test_groups_differ_less_than_where_samples_are_dealt_by_chance() -> None:
    steps = np.stack([drawn(32, seed) for seed in range(50)])
    group_of = deal_steps(steps, 4)
    sums = np.stack([np.where(group_of == group, steps, 0).sum(axis=1) for group in range(4)])
    by_chance = steps.reshape(50, 4, 8).sum(axis=2)

    spread = np.median(np.ptp(sums, axis=0) / sums.mean(axis=0))

    assert spread < 0.05
    assert spread < np.median(np.ptp(by_chance, axis=1) / by_chance.mean(axis=1)) / 10


def test_steps_dealt_together_are_dealt_as_alone() -> None:
    steps = np.stack([drawn(13, seed) for seed in range(20)])
    together = deal_steps(steps, 3)
    alone = [deal_steps(step[None], 3)[0] for step in steps]
    assert (together == np.stack(alone)).all()
