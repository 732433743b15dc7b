"""Histograms of token counts, in steps that a reader can name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MOST_BINS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """How many values lie in each of equal steps."""

    start: int
    """Where the first step begins."""
    step: int
    """Width of a step, a round number."""
    counts: tuple[int, ...]
    """Values in each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The shape of many values in a few numbers."""

    total: int
    least: int
    median: int
    p95: int
    """Of 100 values 95 are no larger."""
    most: int
    mean: float
    histogram: Histogram


def summary(values: NDArray[np.int64]) -> Summary | None:
    """Returns the shape of the values, None where there are none."""
    if not len(values):
        return None
    median, p95 = np.percentile(values, (50, 95), method="higher").tolist()
    return Summary(
        total=int(values.sum()),
        least=int(values.min()),
        median=int(median),
        p95=int(p95),
        most=int(values.max()),
        mean=float(values.mean()),
        histogram=histogram(values),
    )


def histogram(values: NDArray[np.int64], most_bins: int = _MOST_BINS) -> Histogram:
    """Returns how the values are spread, in at most `most_bins` steps of a round width."""
    least, most = int(values.min()), int(values.max())
    step = _round_up((most - least + 1) / most_bins)
    while most // step - least // step + 1 > most_bins:
        step = _round_up(step + 1)
    start = least // step * step
    counts = np.bincount((values - start) // step, minlength=(most - start) // step + 1)
    return Histogram(start=start, step=step, counts=tuple(int(count) for count in counts))


def coarser(fine: Histogram, most_bins: int) -> Histogram:
    """Returns the same in at most `most_bins` steps."""
    factor = -(-len(fine.counts) // most_bins)
    counts = fine.counts
    groups = (sum(counts[at : at + factor]) for at in range(0, len(counts), factor))
    return Histogram(start=fine.start, step=fine.step * factor, counts=tuple(groups))


def _round_up(width: float) -> int:
    """Returns the next of 1, 2, 5, 10, 20, 50 and so on."""
    if width <= 1:
        return 1
    power = 10 ** math.floor(math.log10(width))
    return int(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width))
