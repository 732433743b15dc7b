"""How far a score may be trusted: intervals by the bootstrap, and a paired permutation test.

Every score is a function of numbers that are added up over rows: a mean of values and how many,
a loss of losses and tokens, BLEU of counts of n-grams. So one matrix product makes the sums of all
resamples at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sailplan.evaluate.comparison import Change, Estimate, Verdict

Array: TypeAlias = NDArray[np.float64]

NUM_RESAMPLES = 2_000
"""Of the rows, drawn with replacement, for an interval."""
NUM_SWAPS = 4_999
"""Random exchanges between two sides, for a p-value; all of them where there are fewer."""
MAX_GROUPS = 2_000
"""More rows than these are drawn and exchanged in so many groups, which bounds the work."""
SIGNIFICANT = 0.05
"""The p-value from which on a change may be chance."""

_SEED = 1
_EXACT_UP_TO = NUM_SWAPS.bit_length() - 1  # rows, which have 2 to this power exchanges
_CHUNK = 256  # rows of a product, to keep copies small


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """What one score of one side is made of."""

    rows: Array
    """Numbers that are added up over rows, [rows, numbers]."""
    value: Callable[[Array], Array]
    """What sums of them make: [sums, numbers] to [sums]."""

    @property
    def total(self) -> float:
        """The score over all rows."""
        return float(self.evaluate(self.rows.sum(axis=0, keepdims=True))[0])

    def evaluate(self, sums: Array) -> Array:
        """Returns the score of each row of sums, not finite where it has none."""
        with np.errstate(all="ignore"):
            return self.value(sums)


def mean(values: Sequence[float]) -> Sums:
    """Returns the mean of a value of each row."""
    return ratio(values, [1] * len(values))


def ratio(parts: Sequence[float], wholes: Sequence[float]) -> Sums:
    """Returns the sum of some parts divided by that of their wholes, such as a loss of tokens."""
    return Sums(rows=np.array([parts, wholes], dtype=np.float64).T, value=_quotient)


def exponential(sums: Sums) -> Sums:
    """Returns the exponential of a score, such as the perplexity of a loss."""
    return Sums(rows=sums.rows, value=lambda totals: np.exp(sums.value(totals)))


def estimate(sums: Sums, *, share: bool = False) -> Estimate:
    """Returns a score with its 95 % interval, by the percentiles of the bootstrap.

    Args:
        sums: The score; at least one row.
        share: Whether it lies between 0 and 1. Where all rows are at the same end, resamples know
            nothing of others, and the interval is the exact binomial one.

    Returns:
        The estimate; of a single row, or where it is not finite, without an interval: both ends
        are the value.
    """
    value, num_rows = sums.total, len(sums.rows)
    low, high = _interval(value, sums.evaluate(_resampled(_grouped(sums.rows))))
    if share and value == 0:
        high = 1 - 0.025 ** (1 / num_rows)
    elif share and value == 1:
        low = 0.025 ** (1 / num_rows)
    return Estimate(value=value, low=low, high=high)


def change(base: Sums, side: Sums, better: Literal["higher", "lower", "neither"]) -> Change:
    """Returns how a side differs from the base, over the same rows in the same order.

    The p-value is that of a two-sided permutation test: if the two were alike, each row's pair
    could as well be the other way round. It is never 0, and with fewer than six rows that differ
    never below 0.05.
    """
    difference = side.total - base.total
    resampled = [part.evaluate(_resampled(_grouped(part.rows))) for part in (base, side)]
    with np.errstate(invalid="ignore"):
        low, high = _interval(difference, resampled[1] - resampled[0])
    p_value = _p_value(base, side)
    return Change(
        difference=Estimate(value=difference, low=low, high=high),
        p_value=p_value,
        verdict=_verdict(difference, p_value, better),
    )


def _verdict(difference: float, p_value: float, better: str) -> Verdict:
    if better == "neither" or not difference or not p_value < SIGNIFICANT:
        return "unclear"
    return "better" if (difference > 0) == (better == "higher") else "worse"


def _p_value(base: Sums, side: Sums) -> float:
    if not (np.isfinite(base.rows).all() and np.isfinite(side.rows).all()):
        return 1.0
    first, second = _grouped(base.rows), _grouped(side.rows)
    totals = first.sum(axis=0), second.sum(axis=0)
    observed = abs(side.total - base.total)
    moved = second - first
    moved = moved[(moved != 0).any(axis=1)]
    if not len(moved) or not np.isfinite(observed):
        return 1.0
    exact = len(moved) <= _EXACT_UP_TO
    shifts = _product(_every_swap(len(moved)) if exact else _random_swaps(len(moved)), moved)
    swapped = side.evaluate(totals[1] - shifts) - base.evaluate(totals[0] + shifts)
    # The same sum in another order is the same.
    rounding = 1e-9 * observed + 1e-12 * max(abs(base.total), abs(side.total))
    num_as_large = int(np.count_nonzero(np.abs(swapped) >= observed - rounding))
    return num_as_large / len(shifts) if exact else (num_as_large + 1) / (len(shifts) + 1)


def _interval(value: float, resampled: Array) -> tuple[float, float]:
    if not np.isfinite(value) or not np.isfinite(resampled).all():
        return value, value
    # Values that are there, so that an interval's exponential is that of its ends.
    low, high = np.quantile(resampled, (0.025, 0.975), method="nearest")
    return min(float(low), value), max(float(high), value)


def _quotient(sums: Array) -> Array:
    return np.divide(sums[:, 0], sums[:, 1])


def _grouped(rows: Array) -> Array:
    if len(rows) <= MAX_GROUPS:
        return rows
    order = np.random.default_rng(_SEED).permutation(len(rows))
    groups = np.zeros((MAX_GROUPS, rows.shape[1]))
    np.add.at(groups, np.arange(len(rows)) % MAX_GROUPS, rows[order])
    return groups


def _resampled(rows: Array) -> Array:
    """Returns the sums of each resample, [resamples, numbers]."""
    return _product(_draws(len(rows)), rows)


@lru_cache(maxsize=4)
def _draws(num_rows: int) -> NDArray[np.uint8]:
    """Returns how often each resample has each row; the same ones for all scores and sides."""
    shares = np.full(num_rows, 1 / num_rows)
    draws = np.random.default_rng(_SEED).multinomial(num_rows, shares, size=NUM_RESAMPLES)
    return draws.astype(np.uint8)


def _every_swap(num_rows: int) -> NDArray[np.uint8]:
    numbers = np.arange(2**num_rows)[:, None]
    return (numbers >> np.arange(num_rows) & 1).astype(np.uint8)


def _random_swaps(num_rows: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(_SEED)
    return random.integers(2, size=(NUM_SWAPS, num_rows), dtype=np.uint8)


def _product(choices: NDArray[np.uint8], rows: Array) -> Array:
    """Returns [choices, rows] times [rows, numbers], in double precision."""
    starts: Any = range(0, len(choices), _CHUNK)
    with np.errstate(invalid="ignore"):  # infinite losses
        parts = [choices[start : start + _CHUNK].astype(np.float64) @ rows for start in starts]
    return np.concatenate(parts)
