"""The raw rows of a run that streams: all of them in the order of the files, or a slot's, drawn.

A slot (a worker of a rank) reads its units one after another, `window_rows` rows at a time, and
hands out the rows of such a window in an order drawn by seed, pass and window. So all that it has
to remember is the pass, where the window begins and how many of its rows were handed out.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import datasets
import numpy as np

from sailplan.data.streaming.order import (
    Position,
    Share,
    deal_units,
    draws_by_share,
    unit_order,
    window_chance,
)
from sailplan.data.streaming.parts import Part, Row
from sailplan.errors import DataError

ENTRY_ROWS = 10**12
"""Row numbers of one entry begin that far from those of the entry before: its length is unknown."""

_ALL_ROWS = 1
"""Keeps the draws of rows in the order of the files apart from those of a slot."""

EntryUnit = tuple[int, int]
"""The index of an entry, and of a unit in it."""


class RawRow(NamedTuple):
    """A row as it is stored, and where it is from."""

    entry: int
    unit: int
    row: int
    values: Row


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Raw rows, as `Rows.train` of a run that streams."""

    parts: Sequence[Part]
    """The rows of each entry."""
    shares: Sequence[float] | None
    """The part of the rows that each entry has, None where all rows of all entries are read."""
    seed: int
    """Of the order."""
    window_rows: int
    """The rows of a window, among which the next is drawn; 1 keeps the order of the files."""
    held_out: Mapping[EntryUnit, int] = field(default_factory=dict)
    """Of each unit the number of its first rows that are not trained on."""
    features: datasets.Features = field(default_factory=datasets.Features)
    """The columns of all entries."""

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        return list(self.features)

    def __iter__(self) -> Iterator[Row]:
        """Yields the rows to train on once, in the order of the files."""
        return (row.values for row in self.in_files())

    def place(self, row: RawRow) -> str:
        """Says where a user finds a row, within its entry."""
        return self.parts[row.entry].place(row.unit, row.row)

    def numbered(self) -> Iterator[tuple[int, Row]]:
        """Yields the rows of `__iter__`, each with its number, of which the entry is a part."""
        counts: Counter[int] = Counter()
        for (entry, _), count in self.held_out.items():
            counts[entry] += count
        for row in self.in_files():
            yield row.entry * ENTRY_ROWS + counts[row.entry], row.values
            counts[row.entry] += 1

    def in_files(self) -> Iterator[RawRow]:
        """Yields the rows to train on once, in the order of the files; entries by their shares."""
        readers = self._readers(None, 0, 1)
        for window in itertools.count():
            count = 0
            for row in self._read(readers, np.random.default_rng([self.seed, _ALL_ROWS, window])):
                count += 1
                yield row
            if count < self.window_rows:
                return

    def drawn(
        self, slot: int, num_slots: int, start: Position | None = None, *, fewest: int = 1
    ) -> Iterator[tuple[Position, RawRow]]:
        """Yields the rows of one slot for ever, each with the position behind it.

        Args:
            slot: The slot's number.
            num_slots: How many slots the rows are dealt to.
            start: Where to go on; at the beginning where it is not given.
            fewest: So many rows a pass of all slots must have, or it is an error.

        Raises:
            DataError: A unit cannot be read, or there are too few rows.
        """
        begin = start or Position()
        while True:
            found = begin.offset > 0
            for position, row in self.one_pass(slot, num_slots, begin):
                found = True
                yield position, row
            if not found and not self._has_rows(fewest):
                raise DataError(f"the stream has fewer rows than the run has ranks ({fewest})")
            begin = Position(epoch=begin.epoch + 1)

    def one_pass(
        self, slot: int, num_slots: int, start: Position
    ) -> Iterator[tuple[Position, RawRow]]:
        """Yields what is left of a slot's pass from a position on, as `drawn` does."""
        readers = self._readers(start.epoch, slot, num_slots, start.places)
        offset = start.offset
        for window in itertools.count(start.window):
            places = tuple(reader.place for reader in readers)
            chance = window_chance(self.seed, start.epoch, slot, window)
            rows = list(self._read(readers, chance))
            count = len(rows)
            if self.window_rows > 1:
                rows = [rows[number] for number in chance.permutation(count)]
            rows.reverse()
            del rows[count - offset :]
            while rows:
                offset += 1
                position = Position(epoch=start.epoch, window=window, offset=offset, places=places)
                yield position, rows.pop()  # it may be large: only those still to come are kept
            offset = 0
            if count < self.window_rows:
                return

    def _read(self, readers: Sequence[_Reader], chance: np.random.Generator) -> Iterator[RawRow]:
        """Yields the rows of the next window; fewer where the rows, or those of an entry, end."""
        if self.shares is None:
            yield from itertools.islice(readers[0], self.window_rows)
            return
        for entry in draws_by_share(self.shares, self.window_rows, chance):
            row = next(readers[entry], None)
            if row is None:
                return
            yield row

    def _readers(
        self,
        epoch: int | None,
        slot: int,
        num_slots: int,
        places: Sequence[tuple[int, int]] = (),
    ) -> list[_Reader]:
        """Returns what reads a slot's rows: of all entries, or of each that has a share."""
        units = [
            [(entry, unit) for unit in range(part.num_units)]
            for entry, part in enumerate(self.parts)
        ]
        readers: list[_Reader] = []
        for sequence in units if self.shares else [list(itertools.chain.from_iterable(units))]:
            if epoch is not None and self.window_rows > 1:
                order = unit_order(len(sequence), self.seed, epoch)
                sequence = [sequence[number] for number in order]
            place = places[len(readers)] if places else (0, 0)
            shares = deal_units(sequence, slot, num_slots, turn=epoch or 0)
            readers.append(_Reader(self, shares, place))
        return readers

    def _has_rows(self, count: int) -> bool:
        return sum(1 for _ in itertools.islice(self.in_files(), count)) == count


class _Reader(Iterator[RawRow]):
    """Reads shares of units one after another, and knows where the next row is."""

    def __init__(
        self, stream: Stream, shares: Sequence[Share[EntryUnit]], place: tuple[int, int]
    ) -> None:
        self.place = place
        self._rows = self._read(stream, shares)

    def __next__(self) -> RawRow:
        return next(self._rows)

    def _read(self, stream: Stream, shares: Sequence[Share[EntryUnit]]) -> Iterator[RawRow]:
        first, start = self.place
        for number in range(first, len(shares)):
            share = shares[number]
            entry, unit = share.unit
            start = max(start, stream.held_out.get(share.unit, 0))
            for row, values in stream.parts[entry].rows(unit, start, share.has):
                self.place = (number, row + 1)
                yield RawRow(entry, unit, row, values)
            start = 0


def held_out_rows(stream: Stream, count: int) -> tuple[Stream, list[int], datasets.Dataset]:
    """Holds the first rows of a stream out.

    Returns:
        The stream without them, their numbers, and their rows.

    Raises:
        DataError: The stream has no more rows than that.
    """
    numbers: list[int] = []
    rows: list[Row] = []
    held_out: Counter[EntryUnit] = Counter()
    of_entry: Counter[int] = Counter()
    for row in stream.in_files():
        if len(rows) == count:
            break
        numbers.append(row.entry * ENTRY_ROWS + of_entry[row.entry])
        rows.append(dict(row.values))
        of_entry[row.entry] += 1
        held_out[row.entry, row.unit] += 1
    else:
        raise DataError(
            f"eval_size {count} of a stream of {len(rows)} rows", todo="hold fewer rows out"
        )
    table = datasets.Dataset.from_list(rows, features=stream.features)
    return replace(stream, held_out=dict(held_out)), numbers, table
