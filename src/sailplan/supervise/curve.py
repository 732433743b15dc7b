"""A curve as a few lines of text, drawn with braille dots: two across and four down a letter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

Point = tuple[float, float]
"""A step, and a value at it."""

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""The bits of a braille letter's dots: its left column from the top, then its right one."""
_NO_DOTS = 0x2800


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """What was drawn."""

    rows: tuple[str, ...]
    """From the top, all of one width."""
    marks: tuple[tuple[int, int], ...]
    """The row and the column where each mark lies, in their order."""
    low: float
    """The value at the lower edge."""
    high: float
    """And at the upper one."""


def draw(
    points: Sequence[Point], *, width: int, height: int, marks: Sequence[Point] = ()
) -> Curve | None:
    """Draws a curve through points, each dot's column at the mean of what lies in it.

    Args:
        points: In the order of their steps; what is not finite is left out.
        width: In letters.
        height: In letters.
        marks: Values of another kind that are to be seen on the curve's scale.

    Returns:
        None where there is nothing to draw.
    """
    points = [point for point in points if math.isfinite(point[1])]
    marks = [mark for mark in marks if math.isfinite(mark[1])]
    if not points or width < 1 or height < 1:
        return None
    first = min(step for step, _ in (*points, *marks))
    last = max(step for step, _ in (*points, *marks))
    columns = _columns(points, first=first, last=last, width=2 * width)
    values = [value for _, value in (*columns, *marks)]
    low, high = min(values), max(values)
    dots = [[0] * width for _ in range(height)]

    def row_of(value: float) -> int:
        share = (high - value) / (high - low) if high > low else 0.5
        return round(share * (4 * height - 1))

    before: tuple[int, int] | None = None
    for column, value in columns:
        row = row_of(value)
        for x, y in _line(before or (column, row), (column, row)):
            dots[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
        before = (column, row)
    placed = [
        (row_of(value) // 4, _column(step, first=first, last=last, width=width))
        for step, value in marks
    ]
    return Curve(
        rows=tuple("".join(chr(_NO_DOTS + bits) if bits else " " for bits in row) for row in dots),
        marks=tuple(placed),
        low=low,
        high=high,
    )


def _column(step: float, *, first: float, last: float, width: int) -> int:
    return round((step - first) / (last - first) * (width - 1)) if last > first else 0


def _columns(
    points: Sequence[Point], *, first: float, last: float, width: int
) -> list[tuple[int, float]]:
    """Returns the mean value of each column that has any."""
    found: dict[int, list[float]] = {}
    for step, value in points:
        column = _column(step, first=first, last=last, width=width)
        found.setdefault(column, []).append(value)
    return [(column, fmean(values)) for column, values in sorted(found.items())]


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns the dots of a straight line, both ends among them."""
    (x0, y0), (x1, y1) = start, end
    count = max(abs(x1 - x0), abs(y1 - y0), 1)
    return [
        (round(x0 + (x1 - x0) * n / count), round(y0 + (y1 - y0) * n / count))
        for n in range(count + 1)
    ]
