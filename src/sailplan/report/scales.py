"""Scales of charts: round numbers along an axis, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_TO_ZERO = 0.5
"""A scale begins at zero where the lowest is less than this part of the highest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """One axis of a chart."""

    low: float
    high: float
    """More than `low`."""
    ticks: tuple[float, ...]
    """Round numbers within."""
    write: Callable[[float], str]
    """Writes a number of the axis as its ticks are written."""

    def share(self, value: float) -> float:
        """Returns how far along the axis a value lies, from 0 to 1."""
        return (value - self.low) / (self.high - self.low)


def step_scale(first: int, last: int, most_ticks: int = 5) -> Scale:
    """Returns the scale of steps; it begins at 0 where the first is near to it, or alone.

    Args:
        first: The first step that is shown.
        last: The last.
        most_ticks: So many numbers at most.
    """
    low = 0 if first <= _TO_ZERO * last or first == last else first
    high = max(last, low + 1)
    between = max(1.0, _round_up((high - low) / most_ticks))
    between = math.ceil(between)  # 2.5 steps are none
    return Scale(low=low, high=high, ticks=_ticks(low, high, between), write=_step)


def value_scale(lowest: float, highest: float, *, share: bool = False) -> Scale:
    """Returns the scale of values, from one round number to another.

    Args:
        lowest: The lowest value that is shown.
        highest: The highest.
        share: Whether they are parts of a whole, written in percent; never beyond the whole.
    """
    if 0 <= lowest < _TO_ZERO * highest:
        lowest = 0.0
    if highest <= lowest:  # all the same
        around = abs(lowest) / 2 or (0.05 if share else 1.0)
        lowest, highest = (0.0 if lowest == 0 else lowest - around), highest + around
    between = _round_up((highest - lowest) / 4)
    low = math.floor(lowest / between + 1e-9) * between
    high = math.ceil(highest / between - 1e-9) * between
    if share and highest <= 1:
        high = min(1.0, high)
    return Scale(
        low=low,
        high=high,
        ticks=_ticks(low, high, between),
        write=_writer(low, high, between, share),
    )


def number(value: float, *, share: bool = False) -> str:
    """Returns a value in a few digits, for people."""
    if share:
        return f"{value:.1%}"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return _short_exponent(f"{value:.3g}") if abs(value) < 1e-3 else _thousands(value)


def _ticks(low: float, high: float, between: float) -> tuple[float, ...]:
    first = math.ceil(low / between - 1e-9)
    last = math.floor(high / between + 1e-9)
    return tuple(count * between for count in range(first, last + 1))


def _round_up(width: float) -> float:
    """Returns the next of 1, 2, 2.5, 5, 10, 20, 25, 50 and so on, and of their parts."""
    power = 10.0 ** math.floor(math.log10(width))
    factors = (1.0, 2.0, 2.5, 5.0)
    return next((f * power for f in factors if f * power >= width * (1 - 1e-9)), 10 * power)


def _step(value: float) -> str:
    return _thousands(value) if value >= 10_000 else f"{value:,.0f}"


def _thousands(value: float) -> str:
    if abs(value) >= 1e15:
        return _short_exponent(f"{value:.3g}")
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{name}"
    return f"{value:.4g}"


def _writer(low: float, high: float, between: float, share: bool) -> Callable[[float], str]:
    most = max(abs(low), abs(high))
    decimals = _decimals(between * 100 if share else between)
    if share:
        return lambda value: f"{value:.{decimals}%}"
    if most >= 1e5:
        return lambda value: _thousands(value) if abs(value) > between / 2 else "0"
    if most < 1e-2:
        return lambda value: _short_exponent(f"{value:.3g}") if abs(value) > between / 2 else "0"
    return lambda value: f"{value:,.{decimals}f}" if abs(value) > between / 2 else "0"


def _decimals(between: float) -> int:
    """Returns how many decimals tell round numbers so far apart from each other."""
    for decimals in range(12):
        if abs(round(between, decimals) - between) < 1e-6 * between:
            return decimals
    return 12


def _short_exponent(written: str) -> str:
    """Returns `2e-4` for `0.0002` and for `2e-04`."""
    value = float(written)
    digits, _, power = f"{value:e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
