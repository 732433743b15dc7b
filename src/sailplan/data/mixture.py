"""Puts the rows of several sources together, as TRL does, and knows where each row is from."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from sailplan.errors import DataError, RunFileError

_MAX_TYPE_LENGTH = 120
"""Characters of a column's type that an error shows: that of chats may be long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One source of the rows: an entry of `datasets:`, or what `dataset_name` names."""

    name: str
    """What errors call it; empty where it is the only source that a run can have."""
    folder: Path
    """The folder that its relative image paths belong to."""
    columns: tuple[str, ...]
    """The columns that its rows have, before those of other entries are added as null."""
    start: int
    """The number of rows that stand before its own."""


def entry_of(entries: Sequence[Entry], number: int) -> int:
    """Returns the index of the entry that a row is from.

    Args:
        entries: The entries, in order.
        number: The row's number among all rows, before any were held out.
    """
    return bisect_right([entry.start for entry in entries], number) - 1


def place(entries: Sequence[Entry], number: int) -> str:
    """Says where a user finds a row: its number within its entry, and the entry."""
    entry = entries[entry_of(entries, number)]
    where = f" of {entry.name}" if entry.name else ""
    return f"row {number - entry.start} (from 0){where}"


def shared_columns(entries: Sequence[Entry]) -> list[str]:
    """Returns the columns that the rows of every entry have."""
    first, *others = entries
    return [column for column in first.columns if all(column in o.columns for o in others)]


def seen(entries: Sequence[Entry]) -> str:
    """Lists the columns of the entries, each by its name where there are several."""
    if len(entries) == 1:
        return f"columns seen: {', '.join(map(repr, entries[0].columns))}"
    each = (f"{entry.name}: {', '.join(map(repr, entry.columns))}" for entry in entries)
    return f"columns seen in {'; in '.join(each)}"


def take_fractions(
    parts: Sequence[datasets.Dataset], fractions: Sequence[float | None]
) -> list[datasets.Dataset]:
    """Returns the first rows of each part, so that parts have the shares that are written.

    As in `trl.get_dataset` (1.16): `fraction` is a share of the mixture, which is as large as it
    can be without a row taken twice.

    Raises:
        RunFileError: Some entries have a fraction and others none, or they are no shares.
    """
    shares = check_fractions(fractions)
    if not shares:
        return list(parts)
    whole = sum(shares)
    weights = [share / whole for share in shares]
    total = min(len(part) / weight for part, weight in zip(parts, weights, strict=True) if weight)
    return [
        part.select(range(round(weight * total)))
        for part, weight in zip(parts, weights, strict=True)
    ]


def check_fractions(fractions: Sequence[float | None]) -> list[float]:
    """Returns the shares of the entries, none where none is written.

    Raises:
        RunFileError: Some entries have a fraction and others none, or they are no shares.
    """
    shares = [fraction for fraction in fractions if fraction is not None]
    if not shares:
        return []
    if len(shares) < len(fractions):
        raise RunFileError(
            f"datasets: {len(shares)} of {len(fractions)} entries have a fraction",
            allowed="a fraction in every entry, or in none",
        )
    if min(shares) < 0 or not 0 < sum(shares) < math.inf:
        raise RunFileError(
            f"datasets: the fractions are {', '.join(f'{share:g}' for share in shares)}",
            allowed="shares of 0 or more, and one above 0",
        )
    return shares


def concatenate(parts: Sequence[datasets.Dataset], names: Sequence[str]) -> datasets.Dataset:
    """Returns the rows of all parts, in order; a column that a part lacks is null in its rows.

    Raises:
        DataError: A column is of different types.
    """
    if len(parts) == 1:
        return parts[0]
    try:
        return datasets.concatenate_datasets(list(parts))
    except ValueError as error:
        raise DataError(
            f"datasets: {_conflict(parts, names) or error}",
            todo="write it alike in all of them, or leave it out: list the others under columns",
        ) from error


def _conflict(parts: Sequence[datasets.Dataset], names: Sequence[str]) -> str | None:
    """Names the first column that two parts have and that does not fit together."""
    for later, part in enumerate(parts):
        for column in part.column_names:
            for earlier in range(later):
                both = (parts[earlier], part)
                if column in both[0].features and not _fit(both, column):
                    types = (str(one.features[column])[:_MAX_TYPE_LENGTH] for one in both)
                    (first, second), (one, other) = types, (names[earlier], names[later])
                    return f"column {column!r} is {first} in {one} and {second} in {other}"
    return None


def _fit(both: Sequence[datasets.Dataset], column: str) -> bool:
    try:
        datasets.concatenate_datasets([part.select_columns(column) for part in both])
    except ValueError:
        return False
    return True
