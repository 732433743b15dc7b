"""Deals the sampled rows of a run as training does, with its sampler, seed and work."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from sailplan.data.balance import Work
from sailplan.data.extent import epochs_of, extent_of
from sailplan.data.sampler import Samples, StepSampler
from sailplan.data.work import work_from
from sailplan.plan.facts.batches import Dealt
from sailplan.plan.facts.data import DataFacts

MOST_DRAWN = 65_536
"""Rows that are dealt where a sample of them is known: drawn from it, with a seed."""


def deal_rows(
    data: DataFacts,
    weights: Mapping[str, tuple[int, int]],
    *,
    packs: bool,
    groups: int,
    step_samples: int,
    seed: int | None,
    drop_last: bool,
    epochs: float,
    max_steps: int,
    hidden_size: int,
) -> Dealt:
    """Returns the largest micro batch of a run.

    Where all rows were sampled it is that of the run. Otherwise as many rows as the run trains on
    are drawn from the sample, up to `MOST_DRAWN`.

    Args:
        data: The rows.
        weights: For each part of the model the weights that do not train and those that do; empty
            where no row has images.
        packs: Whether the samples of a micro batch share a row.
        groups: Micro batches of a step over all ranks.
        step_samples: Samples of a step.
        seed: Of the order; None keeps the rows in theirs.
        drop_last: Whether what does not fill a last step is left out.
        epochs: `num_train_epochs`.
        max_steps: Where it is above 0, it is the number of steps.
        hidden_size: Of the language model.
    """
    work = Work(attention=1 / (12 * hidden_size))
    if weights:
        patches = data.patches_per_token
        work = work_from(weights, hidden_size=hidden_size, patches_per_token=patches)
    lengths = np.asarray(data.lengths, dtype=np.int64)
    images = np.asarray(data.image_tokens or [0] * len(lengths), dtype=np.int64)
    if not data.whole:
        trained = max_steps * step_samples if max_steps > 0 else epochs * (data.rows or 0)
        count = min(MOST_DRAWN, max(step_samples, math.ceil(trained)))
        drawn = np.random.default_rng(seed or 0).integers(0, len(lengths), count)
        lengths, images, epochs, max_steps = lengths[drawn], images[drawn], 1, -1
    sampler = StepSampler(
        Samples(lengths=lengths, image_tokens=images, work=work),
        packs=packs,
        step_samples=step_samples,
        ranks=1,
        accumulation=groups,
        rank=0,
        seed=seed,
        step=lambda: 0,
        drop_last=drop_last,
    )
    extent = extent_of(sampler, epochs_of(sampler, epochs=epochs, max_steps=max_steps))
    return Dealt(
        lengths=tuple(int(lengths[index]) for index in extent.members),
        tokens=extent.tokens,
        image_tokens=extent.image_tokens,
        mean_tokens=extent.mean_tokens,
    )
