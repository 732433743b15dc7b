"""Numbers as a report writes them, and scores by their names."""

from __future__ import annotations

import math

from sailplan.evaluate.scores.names import MAIN, SHARES, TITLES

MINUS = "\u2212"


def number(value: float) -> str:
    """Returns a number in about three digits, such as 0.487, 2.31, 48.7 or 1,204."""
    size = abs(value)
    return _written(value, 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3)


def value_of(name: str, value: float) -> str:
    """Returns a score's value, such as 2.31, or 48.7 % of one that is a share."""
    return f"{_written(100 * value, 1)} %" if name in SHARES else number(value)


def change_of(name: str, value: float) -> str:
    """Returns a score's change with its sign, such as +0.214; of a share in points of percent."""
    written = _written(100 * value, 1) if name in SHARES else number(value)
    return f"+{written}" if value > 0 and written.strip("0.") else written


def title_of(name: str) -> str:
    """Returns a score's name for people; a user's own score is called as it is."""
    return TITLES.get(name, name)


def is_main(name: str) -> bool:
    """Returns whether a score judges answers by itself, as one of ours or the user's own."""
    return name in MAIN or name not in TITLES


def _written(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return str(value)
    written = f"{abs(value):,.{digits}f}"
    return MINUS + written if value < 0 and written.strip("0.") else written
