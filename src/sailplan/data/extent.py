"""How large the micro batches of a run get, and how equal: its order is known beforehand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sailplan.data.balance import deal_steps
from sailplan.data.sampler import StepSampler

_MOST_SAMPLES = 4_000_000
"""Drawn samples that are looked at: more epochs of many rows would take longer than a moment."""

_PADDED_SAMPLES, _PADDED_EPOCHS = 2048, 4
"""Samples of an epoch that are divided into padded micro batches, and epochs: transformers' search
for the best division takes its time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """The micro batches of all ranks."""

    members: tuple[int, ...]
    """The samples of the largest one, the longest first."""
    tokens: int
    """It holds, padding among them."""
    image_tokens: int
    """The most that any micro batch holds, be it the largest or not."""
    mean_tokens: float
    """Of a micro batch, padding among them."""
    imbalance: float
    """By how much the heaviest of a step is above the step's mean, on average: 0.05 is 5 %."""
    padding: float
    """Of all tokens, the share that only fills up."""
    epochs: int
    """Passes over the samples that were looked at."""


def batch_words(samples: int, tokens: int, *, packs: bool) -> str:
    """Returns a largest micro batch as a clause.

    Args:
        samples: Of it.
        tokens: It holds, padding among them.
        packs: Whether the samples share a row.
    """
    if packs:
        return f"packed rows of up to {tokens:,} tokens"
    return f"padded micro batches of up to {samples} × {tokens // samples:,} tokens"


def extent_of(sampler: StepSampler, epochs: int) -> Extent:
    """Returns how large the micro batches of a sampler get.

    Every packed row is looked at. Of padded micro batches it is those of the steps that have most
    tokens, for the largest, and of steps that lie evenly between, for the means.

    Args:
        sampler: Draws and deals the samples; there must be one at least.
        epochs: Passes over them.
    """
    count = len(sampler.samples.lengths)
    most = _MOST_SAMPLES // count if sampler.packs else _PADDED_EPOCHS
    seen = max(1, min(epochs, most)) if sampler.shuffle else 1
    measure = _packed if sampler.packs else _padded
    found = [measure(sampler, steps) for epoch in range(seen) for steps in sampler.steps(epoch)]
    if not found:  # `drop_last`, and fewer samples than a step has: training will tell
        found = [measure(sampler, sampler.order(0)[None])]
    weights = np.array([one.weight for one in found], dtype=np.float64)
    held = weights * np.array([one.mean_tokens for one in found])
    largest = max(found, key=lambda one: one.tokens)
    lengths = sampler.samples.lengths

    return Extent(
        members=tuple(sorted(largest.members, key=lambda index: -int(lengths[index]))),
        tokens=largest.tokens,
        image_tokens=max(one.image_tokens for one in found),
        mean_tokens=float(held.sum() / weights.sum()),
        imbalance=float(np.average([one.imbalance for one in found], weights=weights)),
        padding=float(np.average([one.padding for one in found], weights=held)),
        epochs=epochs if not sampler.shuffle else seen,
    )


def largest_words(
    sampler: StepSampler, *, epochs: float, max_steps: int, multiple: int | None
) -> str:
    """Returns the largest micro batch of a run as a line.

    Args:
        sampler: Draws and deals the samples.
        epochs: `num_train_epochs`.
        max_steps: Where it is above 0, it is the number of steps.
        multiple: What rows are filled up to a multiple of, in tokens.
    """
    whole = epochs_of(sampler, epochs=epochs, max_steps=max_steps)
    found = extent_of(sampler, whole)
    rows = 1 if sampler.packs else len(found.members)
    step = rows * (multiple or 1)
    words = batch_words(rows, -(-found.tokens // step) * step, packs=sampler.packs)
    seen = f", in the first {found.epochs} of {whole} epochs" if found.epochs < whole else ""
    return words + seen


def epochs_of(sampler: StepSampler, *, epochs: float, max_steps: int) -> int:
    """Returns the passes over the samples that a run begins.

    Args:
        sampler: Draws the samples.
        epochs: `num_train_epochs`.
        max_steps: Where it is above 0, it is the number of steps.
    """
    if max_steps > 0:
        epochs = max_steps / max(1, sampler.num_global_batches)
    return max(1, math.ceil(epochs))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """Some steps of equally many samples; as in `Extent`."""

    members: list[int]
    tokens: int
    image_tokens: int
    mean_tokens: float
    imbalance: float
    padding: float
    weight: int
    """Steps."""


def _packed(sampler: StepSampler, steps: NDArray[np.int64]) -> _Measured:
    samples, groups = sampler.samples, sampler.dp_size * sampler.grad_accum
    lengths, images = samples.lengths[steps], samples.image_tokens[steps]
    work = samples.work.of(lengths, images)
    group_of = deal_steps(work, groups)
    tokens, of_images = (_summed(values, group_of, groups) for values in (lengths, images))
    load = _summed(work, group_of, groups)
    step, group = np.unravel_index(int(tokens.argmax()), tokens.shape)
    return _Measured(
        members=steps[step][group_of[step] == group].tolist(),
        tokens=int(tokens.max()),
        image_tokens=int(of_images.max()),
        mean_tokens=float(tokens.mean()),
        imbalance=float((load.max(axis=1) / load.mean(axis=1)).mean() - 1),
        padding=0.0,
        weight=len(steps),
    )


def _summed(
    values: NDArray[np.int64] | NDArray[np.float64], group_of: NDArray[np.int64], groups: int
) -> NDArray[np.float64]:
    """Returns the sum of each group of each step, `[steps, groups]`."""
    places = group_of + groups * np.arange(len(values))[:, None]
    flat = np.asarray(values, dtype=np.float64).ravel()
    summed = np.bincount(places.ravel(), flat, minlength=groups * len(values))
    return np.asarray(summed.reshape(len(values), groups), dtype=np.float64)


def _padded(sampler: StepSampler, steps: NDArray[np.int64]) -> _Measured:
    lengths, images = sampler.samples.lengths, sampler.samples.image_tokens
    count = min(len(steps), max(1, _PADDED_SAMPLES // steps.shape[1] // 2))
    between = np.linspace(0, len(steps) - 1, count).astype(int)
    longest = np.argsort(-lengths[steps].sum(axis=1), kind="stable")[:count]
    divided = {index: _divided(sampler, steps[index].tolist()) for index in {*between, *longest}}
    sizes = {
        index: [len(group) * int(lengths[group].max()) for group in groups]
        for index, groups in divided.items()
    }
    usual = [sizes[index] for index in between]
    held = sum(map(sum, usual))
    worst = max(sizes, key=lambda index: max(sizes[index]))
    most = max(sizes[worst])
    return _Measured(
        members=divided[worst][sizes[worst].index(most)],
        tokens=most,
        image_tokens=max(int(images[group].sum()) for of in divided.values() for group in of),
        mean_tokens=held / sum(map(len, usual)),
        imbalance=float(np.mean([max(one) * len(one) / sum(one) - 1 for one in usual])),
        padding=1 - float(lengths[steps[between]].sum()) / held,
        weight=len(steps),
    )


def _divided(sampler: StepSampler, step: list[int]) -> list[list[int]]:
    """Returns the micro batches of all ranks that a step is divided into."""
    if len(step) <= sampler.dp_size * sampler.grad_accum:
        return [[index] for index in step]
    of_ranks = sampler._assign(step, sampler.samples.lengths[step].tolist())
    return [group for of_rank in of_ranks for group in of_rank if group]
