"""What differs among things that should be alike, and in whose case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

T = TypeVar("T", bound=Hashable)

_MOST_NAMED = 6


def usual(values: Mapping[str, T], otherwise: T | None = None) -> T | None:
    """Returns the value that most have; where none is the commonest, `otherwise` if some have it.

    Args:
        values: Of each node.
        otherwise: What stands for the usual one in a tie.
    """
    counted = Counter(values.values()).most_common()
    if not counted:
        return otherwise
    commonest = [value for value, count in counted if count == counted[0][1]]
    if otherwise is not None and otherwise in commonest:
        return otherwise
    return commonest[0]


def listed(names: Iterable[str]) -> str:
    """Returns names in one clause; of many the first ones and how many more."""
    every = list(names)
    more = len(every) - _MOST_NAMED
    if more <= 1:
        return ", ".join(every)
    return f"{', '.join(every[:_MOST_NAMED])} and {more} more"
