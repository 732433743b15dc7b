"""Encodes one raw row of a run, with the row's place in whatever goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sailplan.data.encode import Encoded, Encoder
from sailplan.data.formats import Format
from sailplan.data.images import ImageOpener
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
        try:
            sample = self.format.sample(row)
            sizes = [self.opener.size(reference, entry) for reference in sample["images"]]
            return self.encoder.encode(sample, sizes), entry, len(sizes)
        except DataError as error:
            raise DataError(f"{self.place(number)}: {error}") from error

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
    told: bool = False

    def __call__(self, number: int, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns what the collator takes, None for a row that is too long.

        Raises:
            DataError: The row cannot be trained on, or is too long where that is an error.
        """
        encoded, entry, _ = self.rows(number, row)
        where = self.rows.place(number)
        if self.limit is not None and len(encoded.input_ids) > self.limit:
            got = (
                f"{where} has {len(encoded.input_ids)} tokens, more than {self.limit} (max_length)"
            )
            if self.fails:
                raise DataError(got, todo="raise max_length, lower max_pixels, or drop such rows")
            if not self.told:
                self.told = True
                print(f"{got}: left out, as all longer ones are", file=sys.stderr)
            return None
        images = {name: row.get(name) for name in self.rows.format.image_fields}
        found = {"input_ids": encoded.input_ids, "labels": encoded.labels}
        return {**found, "entry": entry, "place": where, **images}
