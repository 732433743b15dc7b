"""What becomes of samples that are longer than the model or the run allows."""

from __future__ import annotations

import datasets
import numpy as np

from sailplan.data.mixture import place
from sailplan.data.sources import Rows
from sailplan.data.token_rows import column
from sailplan.errors import DataError

MAX_DROPPED = 0.01
"""The part of the rows that may be dropped for their length without `over_length: drop`."""

WAYS = "raise max_length, lower max_pixels, or write over_length: drop or truncate_text"
"""What to do about samples that are too long."""


def stops_training(count: int, num_rows: int, over_length: str | None) -> bool:
    """Tells whether so many rows that are too long stop a run, instead of being dropped.

    Args:
        count: How many are too long.
        num_rows: Of how many.
        over_length: The run's `over_length`.
    """
    if over_length == "fail" or count == num_rows:
        return count > 0
    return over_length != "drop" and count > MAX_DROPPED * num_rows


def within_length(
    split: str,
    encoded: datasets.Dataset,
    limit: int | None,
    over_length: str | None,
    rows: Rows,
) -> tuple[datasets.Dataset, list[str]]:
    """Drops rows that are too long, and says so.

    Raises:
        DataError: There are too many of them.
    """
    lengths = column(encoded, "length")
    fitting = np.flatnonzero(lengths <= (limit or np.inf))
    count = len(lengths) - len(fitting)
    if not count:
        return encoded, []
    got = (
        f"{count} of {len(lengths)} {split} rows are longer than {limit} tokens (max_length), "
        f"the longest has {lengths.max()}"
    )
    if not stops_training(count, len(lengths), over_length):
        return encoded.select(fitting), [f"{got}: dropped"]
    if over_length == "fail":
        first = rows.numbers[split][int(np.flatnonzero(lengths > (limit or 0))[0])]
        raise DataError(f"{got}, the first is {place(rows.entries, first)}", todo=WAYS)
    if over_length != "drop":
        raise DataError(got, allowed=f"{MAX_DROPPED:.0%} of the rows", todo=WAYS)
    raise DataError(f"{got}: none is left", todo="raise max_length or lower max_pixels")
