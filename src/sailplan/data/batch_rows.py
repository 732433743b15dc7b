"""Which rows a batch has, by the words that a user finds them by; rows that broke are left out.

An image can rot, or a network fail, between encoding and training. Then the worker that meets it
makes the batch of the other rows, and tells of it. What it tells travels beside the model's inputs,
as the counts of a batch do (`sailplan.data.counts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sailplan.errors import DataError

ROWS = "rows"
"""The key of a batch that holds its `BatchRows`."""

BROKEN = "broken"
"""The key of a row that cannot be trained on; it holds why."""

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRows:
    """The rows of one micro batch of one rank."""

    places: tuple[str, ...]
    """Where a user finds each of them."""
    broken: tuple[tuple[str, str], ...] = ()
    """The place of each row that was left out, and why."""


def broken_row(where: str, error: DataError) -> dict[str, Any]:
    """Returns what stands for a row of a stream that cannot be encoded; it has no tokens.

    Args:
        where: Its place.
        error: Why.
    """
    nothing = np.zeros(0, dtype=np.int32)
    counts = dict.fromkeys(("length", "trained", "num_images", "image_tokens", "entry"), 0)
    return {"input_ids": nothing, "labels": nothing, **counts, "place": where, BROKEN: str(error)}


class NamingCollator:
    """A collator whose batches come with their rows, under `ROWS`.

    Args:
        collate: Makes a batch of rows, and of none.
    """

    def __init__(self, collate: Callable[[Sequence[Row]], dict[str, Any]]) -> None:
        self.collate = collate
        self.leaves_out = False
        """Whether rows that cannot be trained on are left out, instead of ending the run."""

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Returns what is made of the rows, and which they are.

        Raises:
            DataError: One cannot be trained on, and none are left out.
        """
        found = [(_place(row), row[BROKEN]) for row in rows if BROKEN in row]
        whole = [row for row in rows if BROKEN not in row]
        try:
            batch = self.collate(whole)
        except DataError:
            reasons = [self._broken(row) for row in whole] if self.leaves_out else []
            if not any(reasons):
                raise
            pairs = list(zip(whole, reasons, strict=True))
            found += [(_place(row), why) for row, why in pairs if why is not None]
            whole = [row for row, why in pairs if why is None]
            batch = self.collate(whole)
        named = BatchRows(places=tuple(map(_place, whole)), broken=tuple(found))
        return {**batch, ROWS: named}

    def _broken(self, row: Row) -> str | None:
        """Returns why a batch of this row alone cannot be made, None where it can."""
        try:
            self.collate([row])
        except DataError as error:
            where, why = _place(row), str(error)
            return why if why.startswith(where) else f"{where}: {why}"
        return None


def take_rows(batches: Iterable[dict[str, Any]]) -> list[BatchRows]:
    """Takes the rows out of batches, and returns them; a batch without any has no names."""
    return [batch.pop(ROWS, BatchRows(places=())) for batch in batches]


def _place(row: Row) -> str:
    return str(row.get("place", "a row"))
