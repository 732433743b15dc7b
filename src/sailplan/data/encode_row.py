"""Encodes one raw row of a run, with the row's place in whatever goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sailplan.data.batch_rows import broken_row
from sailplan.data.encode import Encoded, Encoder
from sailplan.data.formats import Format
from sailplan.data.images import ImageOpener
from sailplan.data.labels import UNTRAINED
from sailplan.data.mixture import Entry, entry_of, place
from sailplan.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class RowEncoder:
    """From a raw row to ids and labels; workers of all kinds get a copy."""

    split: str
    """`train` or `eval`."""
    format: Format
    encoder: Encoder
    opener: ImageOpener
    entries: tuple[Entry, ...]
    """Where the rows are from."""

    def __call__(self, number: int, row: Mapping[str, Any]) -> tuple[Encoded, int, int]:
        """Returns the row encoded, the index of its entry, and the number of its images.

        Args:
            number: The row's number among all rows, before any were held out.
            row: The row.

        Raises:
            DataError: The row cannot be trained on; it is named by split and number.
        """
        entry = entry_of(self.entries, number)
        encoded, num_images = self.encode(entry, self.place(number), row)
        return encoded, entry, num_images

    def encode(self, entry: int, where: str, row: Mapping[str, Any]) -> tuple[Encoded, int]:
        """Returns the row encoded, and the number of its images.

        Args:
            entry: The index of its entry.
            where: What errors call it.
            row: The row.

        Raises:
            DataError: The row cannot be trained on.
        """
        try:
            sample = self.format.sample(row)
            sizes = [self.opener.size(reference, entry) for reference in sample["images"]]
            return self.encoder.encode(sample, sizes), len(sizes)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error

    def place(self, number: int) -> str:
        """Says where a user finds a row."""
        return f"{self.split} {place(self.entries, number)}"


@dataclass(kw_only=True, slots=True)
class StreamedRow:
    """Encodes a row of a stream with what the collator needs; too long ones are left out."""

    rows: RowEncoder
    limit: int | None
    """Most tokens of a row."""
    fails: bool
    """Whether a longer one is an error (`over_length: fail`)."""
    leaves_out: bool = False
    """Whether one that cannot be trained on becomes a `broken_row`, which no batch has."""
    told: bool = False

    def __call__(self, entry: int, where: str, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns what a cached row has, and its images; None for a row that is too long.

        Args:
            entry: The index of its entry.
            where: Where a user finds it within the entry.
            row: The row.

        Raises:
            DataError: The row cannot be trained on, or is too long where that is an error.
        """
        name = self.rows.entries[entry].name
        where = f"{self.rows.split} {where}{f' of {name}' if name else ''}"
        try:
            encoded, num_images = self.rows.encode(entry, where, row)
        except DataError as error:
            if not self.leaves_out:
                raise
            return broken_row(where, error)
        length = len(encoded.input_ids)
        if self.limit is not None and length > self.limit:
            got = f"{where} has {length} tokens, more than {self.limit} (max_length)"
            if self.fails:
                raise DataError(got, todo="raise max_length, lower max_pixels, or drop such rows")
            if not self.told:
                self.told = True
                print(f"{got}: left out, as all longer ones are", file=sys.stderr)
            return None
        ids = np.asarray(encoded.input_ids, dtype=np.int32)
        labels = np.asarray(encoded.labels, dtype=np.int32)
        return {
            "input_ids": ids,
            "labels": labels,
            "length": length,
            "trained": int(np.count_nonzero(labels != UNTRAINED)),
            "num_images": num_images,
            "image_tokens": encoded.image_tokens,
            "entry": entry,
            "place": where,
            **{name: row.get(name) for name in self.rows.format.image_fields},
        }
