"""Reads the units of one entry of a stream: shards of `datasets`, or a table that lies on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Protocol

import datasets

from sailplan.errors import DataError

Row = Mapping[str, Any]

Wanted = Callable[[int], bool]
"""Whether a row of a unit is wanted, by its number in the unit."""

FEW_SHARDS = 256
"""Of fewer files the row groups are the units, where there are any. To know them each file's
footer is read once; that many files are units enough, and on a hub each costs a request."""

_MOST_PIECES = 10_000
"""`datasets` goes through the list of all shards to find one, 13 µs for each of them (5.2)."""

_READ_ROWS = 16
"""Rows that are turned into Python's objects at once."""

_TABLE_ROWS = 256
"""Rows of a unit of a table."""


class Part(Protocol):
    """The rows of one entry, in units that can be read apart from each other."""

    @property
    def features(self) -> datasets.Features:
        """The columns."""

    @property
    def num_units(self) -> int:
        """How many units there are."""

    def rows(
        self, unit: int, start: int = 0, wanted: Wanted | None = None
    ) -> Iterator[tuple[int, Row]]:
        """Yields the rows of a unit, each with its number in it, without their pixels decoded.

        Args:
            unit: The unit.
            start: The first row.
            wanted: Which rows are yielded; the others are passed over as cheaply as can be.

        Raises:
            DataError: The unit cannot be read.
        """

    def place(self, unit: int, row: int) -> str:
        """Says where a user finds a row."""


def finer(rows: datasets.IterableDataset) -> datasets.IterableDataset:
    """Returns a stream in finer shards where it has few and its files can be read in pieces."""
    if rows.num_shards >= FEW_SHARDS:
        return rows
    pieces = rows.reshard()
    return pieces if pieces.num_shards <= _MOST_PIECES else rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Shards:
    """A stream of `datasets`, each of its shards a unit."""

    stream: datasets.IterableDataset
    """The rows."""

    @property
    def features(self) -> datasets.Features:
        """The columns."""
        return self.stream.features

    @property
    def num_units(self) -> int:
        """The number of shards."""
        return int(self.stream.num_shards)

    def rows(
        self, unit: int, start: int = 0, wanted: Wanted | None = None
    ) -> Iterator[tuple[int, Row]]:
        """Yields the rows of a shard; see `Part`."""
        shard = self.stream.shard(num_shards=self.num_units, index=unit)
        if start:
            shard = shard.skip(start)
        row = start
        # Iterating the dataset itself would deal out its shards again in a DataLoader's worker.
        batches = shard.iter(batch_size=_READ_ROWS)
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # whatever the readers of all formats raise
                raise self._unreadable(unit, row, error) from error
            if batch is None:
                return
            columns = list(batch)
            for values in zip(*batch.values(), strict=True):
                if wanted is None or wanted(row):
                    yield row, dict(zip(columns, values, strict=True))
                row += 1

    def place(self, unit: int, row: int) -> str:
        """Says where a user finds a row: by its file where there are several."""
        return f"row {row} (from 0){self._of(unit)}"

    def _of(self, unit: int) -> str:
        """Names a unit, as ` of …`, where the row's number alone does not say where it is."""
        if self.num_units == 1:
            return ""
        source = self.stream._ex_iterable
        while hasattr(source, "ex_iterable"):
            source = source.ex_iterable
        lists = [value for value in source.kwargs.values() if isinstance(value, list)]
        files = next((names for names in lists if isinstance(names[0], str)), None)
        name = PurePath(files[unit]).name if files else f"shard {unit} (from 0)"
        groups = (source.kwargs.get("row_groups_list") or {unit: None})[unit]
        return f" of row group {groups[0]} (from 0) of {name}" if groups else f" of {name}"

    def _unreadable(self, unit: int, row: int, error: BaseException) -> DataError:
        while error.__cause__ is not None:
            error = error.__cause__
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        where = self._of(unit) or " of the stream"
        return DataError(f"the rows from {row} (from 0){where} cannot be read: {line}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A dataset that lies on disk, memory-mapped, and is read anywhere at no cost."""

    table: datasets.Dataset
    """The rows."""

    @property
    def features(self) -> datasets.Features:
        """The columns."""
        return self.table.features

    @property
    def num_units(self) -> int:
        """The number of pieces of `_TABLE_ROWS` rows."""
        return -(-len(self.table) // _TABLE_ROWS)

    def rows(
        self, unit: int, start: int = 0, wanted: Wanted | None = None
    ) -> Iterator[tuple[int, Row]]:
        """Yields the rows of a piece; see `Part`."""
        first = unit * _TABLE_ROWS
        for row in range(start, min(_TABLE_ROWS, len(self.table) - first)):
            if wanted is None or wanted(row):
                yield row, self.table[first + row]

    def place(self, unit: int, row: int) -> str:
        """Says where a user finds a row: by its number in the table."""
        return f"row {unit * _TABLE_ROWS + row} (from 0)"
