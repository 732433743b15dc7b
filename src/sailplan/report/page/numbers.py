"""Numbers as a report writes them."""

from __future__ import annotations

import math

MINUS = "\u2212"


def number(value: float) -> str:
    """Returns a number in about three digits, such as 0.487, 2.31, 48.7 or 1,204."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3
    written = f"{size:,.{digits}f}"
    return MINUS + written if value < 0 and float(written.replace(",", "")) else written


def change(value: float) -> str:
    """Returns a difference with its sign, such as +0.214."""
    written = number(value)
    return f"+{written}" if value > 0 and written.strip("0.") else written
