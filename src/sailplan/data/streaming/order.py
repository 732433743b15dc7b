"""Who reads what of a stream, and in which order: pure arithmetic, the same on every rank.

A stream is read in *units*: files, or the row groups of parquet files. A *slot* is one worker of
one rank. In every pass the units are put in a new order and dealt to the slots, so that each row
belongs to exactly one of them, and each slot has the same number of units, to a fraction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

Unit = TypeVar("Unit")

_UNITS, _WINDOW = 2, 3
"""Keep the draws of one seed apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share(Generic[Unit]):
    """The rows of one unit that one slot reads: all of them, or some of every `of` rows."""

    unit: Unit
    """The unit."""
    first: int = 0
    """Of every `of` rows the first that is read."""
    stop: int = 1
    """The first that is not read any more."""
    of: int = 1
    """How many rows are dealt at a time."""
    turn: int = 0
    """By how many rows the deal is moved on."""

    def has(self, row: int) -> bool:
        """Whether a row of the unit is read, by its number in the unit, from 0."""
        return self.first <= (row + self.turn) % self.of < self.stop


def deal_units(
    units: Sequence[Unit], slot: int, num_slots: int, *, turn: int = 0
) -> list[Share[Unit]]:
    """Returns what one slot reads of the units.

    Whole units go round as long as there is one for every slot. The R units that are then left for
    S slots are cut into S parts each, and every slot gets R parts that lie together: of one unit,
    or the end of one and the beginning of the next. So no slot has more than another, and beyond
    its own rows none reads more than the rest of two units.

    Args:
        units: The units, in the order of this pass.
        slot: The slot's number.
        num_slots: How many there are.
        turn: Moves the parts on, so that where there are fewer rows than slots each slot gets
            some, in one pass or another.
    """
    rounds, left = divmod(len(units), num_slots)
    shares = [Share(unit=units[number * num_slots + slot]) for number in range(rounds)]
    start, stop = slot * left, (slot + 1) * left
    while start < stop:
        unit, first = divmod(start, num_slots)
        end = min(num_slots, first + stop - start)
        shares.append(
            Share(
                unit=units[rounds * num_slots + unit],
                first=first,
                stop=end,
                of=num_slots,
                turn=turn,
            )
        )
        start += end - first
    return shares


def unit_order(count: int, seed: int, epoch: int) -> list[int]:
    """Returns the order of the units in one pass, the same for every slot."""
    return list(np.random.default_rng([seed, _UNITS, epoch]).permutation(count).tolist())


def window_chance(seed: int, epoch: int, slot: int, window: int) -> np.random.Generator:
    """Returns what draws the order within one window of a slot."""
    return np.random.default_rng([seed, _WINDOW, epoch, slot, window])


def draws_by_share(shares: Sequence[float], count: int, chance: np.random.Generator) -> list[int]:
    """Returns from which entry each of `count` rows comes.

    Every entry has its share of the rows, to a row, and of the first rows too, so that the shares
    hold where an entry ends within them.

    Args:
        shares: The entries' shares, 0 or more, in any unit.
        count: The rows.
        chance: Draws.
    """
    bounds = np.cumsum(shares) / np.sum(shares)
    bounds[bounds >= bounds[-1]] = 2.0  # whatever rounding made of 1
    points = (chance.random() + np.arange(count)) / count
    entries = np.searchsorted(bounds, points, side="right")  # in their order: spread them evenly
    counts = np.bincount(entries, minlength=len(bounds))
    own_number = np.arange(count) - (np.cumsum(counts) - counts)[entries]
    due = (own_number + chance.random(len(counts))[entries]) / counts[entries]
    return list(entries[np.argsort(due, kind="stable")].tolist())


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where a slot stands: behind the last row that was handed out."""

    epoch: int = 0
    """The pass, from 0."""
    window: int = 0
    """The window in the slot's pass, from 0."""
    offset: int = 0
    """The rows of the window that were handed out."""
    places: tuple[tuple[int, int], ...] = ()
    """Where the window begins, so that none before it is read again: for each sequence of units
    that the slot reads, the index of the share and the first row in its unit. Empty at the
    beginning of a pass."""

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain numbers and lists."""
        places = [list(place) for place in self.places]
        return {
            "epoch": self.epoch,
            "window": self.window,
            "offset": self.offset,
            "places": places,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Position:
        """Reads what `as_json` returned."""
        places = tuple((int(share), int(row)) for share, row in content["places"])
        return cls(**{**content, "places": places})
