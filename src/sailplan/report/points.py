"""Many points as the few that are seen: thinned out without losing extremes, and smoothed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from statistics import median

from sailplan.report.record import Point

COLUMNS = 250
"""So many columns a line is thinned out to; each keeps four points at most."""

_SMOOTHED_FROM = 40
"""Fewer points are read as they are."""
_WINDOWS = 40
"""A mean is over a part so large of all points."""
_NOISE = 0.02
"""Above this part of the height, what lies between neighbours hides where a line goes."""

_OUT_OF_SIGHT = 5.0
"""A value so many times as far from the lowest as most are would press the others flat."""


def column_of(step: float, first: float, last: float, num_columns: int) -> int:
    """Returns in which of equal columns between two steps a step lies, from 0."""
    if last <= first:
        return 0
    return min(num_columns - 1, int((step - first) / (last - first) * num_columns))


def thinned(points: Sequence[Point], num_columns: int = COLUMNS) -> list[Point]:
    """Returns the points that are seen: of each column four at most.

    Args:
        points: In the order of their steps.
        num_columns: Of each the first, the last, the lowest and the highest point are left.
    """
    if len(points) <= 4 * num_columns:
        return list(points)
    return [point for column in _columns(points, num_columns) for point in _seen(column)]


def _columns(points: Sequence[Point], num_columns: int) -> Iterable[list[Point]]:
    first, last = points[0][0], points[-1][0]
    found: dict[int, list[Point]] = {}
    for point in points:
        found.setdefault(column_of(point[0], first, last, num_columns), []).append(point)
    return found.values()


def _seen(column: list[Point]) -> Iterator[Point]:
    places = range(len(column))
    lowest = min(places, key=lambda place: column[place][1])
    highest = max(places, key=lambda place: column[place][1])
    for place in sorted({0, lowest, highest, len(column) - 1}):
        yield column[place]


def smoothed(points: Sequence[Point], highest: float) -> tuple[list[Point], int] | None:
    """Returns a line's mean over a few neighbours, and over how many points it is.

    At both ends the mean is over fewer, as many to the left as to the right, so that it does not
    lag behind.

    Args:
        points: In the order of their steps.
        highest: What is above it counts as it; see `highest_in_sight`.

    Returns:
        None where the line is read better as it is: it is short, or smooth.
    """
    if len(points) < _SMOOTHED_FROM:
        return None
    half = max(2, len(points) // _WINDOWS // 2)
    values = [min(value, highest) for _, value in points]
    sums = [0.0, *accumulate(values)]
    means: list[Point] = []
    for place, (step, _) in enumerate(points):
        reach = min(half, place, len(points) - 1 - place)
        total = sums[place + reach + 1] - sums[place - reach]
        means.append((step, total / (2 * reach + 1)))
    height = max(values) - min(values)
    between = median(abs(after - before) for before, after in pairwise(values))
    return (means, 2 * half + 1) if between > _NOISE * height else None


def highest_in_sight(values: Sequence[float]) -> float:
    """Returns the highest value that a chart should reach up to.

    It is the highest of all, unless a few lie so far above the others that those would be pressed
    flat; then the highest but for these.
    """
    ordered = sorted(values)
    most = ordered[round(0.98 * (len(ordered) - 1))]
    limit = ordered[0] + _OUT_OF_SIGHT * (most - ordered[0])
    if len(ordered) < _SMOOTHED_FROM or most == ordered[0] or ordered[-1] <= limit:
        return ordered[-1]
    return max(value for value in ordered if value <= limit)
