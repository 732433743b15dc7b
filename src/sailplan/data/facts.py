"""What the rows of a split are in numbers, from the columns of its encoded rows alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """The rows of one split as they were encoded."""

    name: str
    num_rows: int
    num_tokens: int
    num_trained_tokens: int
    num_images: int
    num_image_tokens: int
    quantiles: tuple[tuple[str, int], ...]
    """Of the length of a row in tokens: `least`, `median`, `95 %`, `most`."""


def split_facts(name: str, rows: datasets.Dataset) -> Split:
    """Returns what encoded rows are in numbers; no row is read.

    Args:
        name: What the split is called, such as `train`.
        rows: The rows, as `data.prepare` leaves them.
    """
    import numpy as np

    from sailplan.data.token_rows import column

    lengths = column(rows, "length")
    quantiles: tuple[tuple[str, int], ...] = ()
    if len(lengths):
        # As `inspect` counts them: a length that a row has, not one between two rows.
        found = np.percentile(lengths, (0, 50, 95, 100), method="higher").tolist()
        quantiles = tuple(zip(("least", "median", "95 %", "most"), map(int, found), strict=True))

    def total(of: str) -> int:
        return int(column(rows, of).sum(dtype=np.int64))

    return Split(
        name=name,
        num_rows=len(lengths),
        num_tokens=int(lengths.sum(dtype=np.int64)),
        num_trained_tokens=total("trained"),
        num_images=total("num_images"),
        num_image_tokens=total("image_tokens"),
        quantiles=quantiles,
    )
