"""How large micro batches get, against all that are drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sailplan.data.balance import Work
from sailplan.data.extent import epochs_of, extent_of, largest_words
from sailplan.data.sampler import Samples, StepSampler

WORK = Work(attention=1 / 768, image_token=1.5)
EPOCHS = 3


def samples_of(count: int) -> Samples:
    chance = np.random.default_rng(count)
    lengths = np.clip(chance.lognormal(6, 0.8, count), 8, 8000).astype(np.int64)
    images = chance.integers(0, 3, count) * lengths // 4
    return Samples(lengths=lengths, image_tokens=images, work=WORK)


def sampler(samples: Samples, *, epoch: int = 0, **changes: Any) -> StepSampler:
    settings: dict[str, Any] = {"packs": True, "seed": 42, "drop_last": False, "rank": 0, **changes}
    steps = -(-len(samples.lengths) // 16)
    if settings["drop_last"]:
        steps = len(samples.lengths) // 16
    return StepSampler(
        samples, step_samples=16, ranks=2, accumulation=2, step=lambda: epoch * steps, **settings
    )


def drawn(samples: Samples, **changes: Any) -> list[list[int]]:
    """All micro batches of both ranks."""
    return [
        micro_batch
        for epoch in range(EPOCHS)
        for rank in range(2)
        for micro_batch in sampler(samples, epoch=epoch, rank=rank, **changes)
    ]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("seed", [42, None], ids=["shuffled", "in_order"])
@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
def test_extent_is_that_of_all_micro_batches_that_are_drawn(
    packs: bool, seed: int | None, drop_last: bool
) -> None:
    for count in (100, 117):
        samples = samples_of(count)
        changes = {"packs": packs, "seed": seed, "drop_last": drop_last}
        found = extent_of(sampler(samples, **changes), EPOCHS)
        micro_batches = drawn(samples, **changes)
        lengths = samples.lengths
        sizes = [
            int(lengths[one].sum() if packs else len(one) * lengths[one].max())
            for one in micro_batches
        ]
        assert found.tokens == max(sizes)
        largest = max(micro_batches, key=lambda one: sizes[micro_batches.index(one)])
        assert sorted(found.members) == sorted(largest)
        assert found.image_tokens == max(
            int(samples.image_tokens[one].sum()) for one in micro_batches
        )
        assert found.mean_tokens == pytest.approx(np.mean(sizes), rel=0.05)
        assert found.padding == pytest.approx(
            1 - sum(int(lengths[one].sum()) for one in micro_batches) / sum(sizes), abs=0.01
        )
        assert found.epochs == EPOCHS


def test_fewer_samples_than_a_step_are_one_step() -> None:
    found = extent_of(sampler(samples_of(7)), 1)
    assert found.tokens >= samples_of(7).lengths.max()
    alone = extent_of(sampler(samples_of(3), packs=False), 1)
    assert alone.tokens == samples_of(3).lengths.max()
    assert alone.padding == 0


def test_packed_rows_of_a_step_are_nearly_equal_where_no_sample_outweighs_the_others() -> None:
    samples = samples_of(1600)
    short = np.minimum(samples.lengths, 600)
    alike = Samples(lengths=short, image_tokens=np.zeros_like(short), work=WORK)
    assert extent_of(sampler(alike), 1).imbalance < 0.05


def test_epochs_follow_from_the_steps_where_they_are_written() -> None:
    drawing = sampler(samples_of(160))  # ten steps
    assert epochs_of(drawing, epochs=2.5, max_steps=-1) == 3
    assert epochs_of(drawing, epochs=3, max_steps=11) == 2
    assert epochs_of(drawing, epochs=3, max_steps=1) == 1


def test_largest_row_is_said_with_what_it_is_filled_up_to() -> None:
    drawing = sampler(samples_of(160))
    tokens = extent_of(drawing, EPOCHS).tokens
    settings: dict[str, Any] = {"epochs": EPOCHS, "max_steps": -1}
    words = largest_words(drawing, multiple=None, **settings)
    assert words == f"packed rows of up to {tokens:,} tokens"
    filled = -(-tokens // 64) * 64
    assert f"up to {filled:,} tokens" in largest_words(drawing, multiple=64, **settings)
    padded = sampler(samples_of(160), packs=False)
    settings["epochs"] = 100
    words = largest_words(padded, multiple=64, **settings)
    assert words.startswith("padded micro batches of up to ")
    assert words.endswith("tokens, in the first 4 of 100 epochs")
