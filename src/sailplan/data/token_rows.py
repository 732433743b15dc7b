"""Encoded rows as they lie on disk, and as they are read: arrays, with their images joined.

Labels are ids or -100, so that only the spans of those that are trained are stored.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types
from datasets.formatting import _register_formatter
from datasets.formatting.formatting import Formatter
from numpy.typing import NDArray

from sailplan.data.counts import READING
from sailplan.data.encode_row import RowEncoder
from sailplan.data.labels import UNTRAINED
from sailplan.data.mixture import Entry, place

Ints = NDArray[np.int32]

_INT = datasets.Value("int32")
FEATURES = datasets.Features(
    {
        "input_ids": datasets.List(_INT),
        "trained_spans": datasets.List(_INT),
        "length": _INT,
        "trained": _INT,
        "num_images": _INT,
        "image_tokens": _INT,
        "row": datasets.Value("int64"),
        "entry": _INT,
        "method": datasets.Value("string"),
    }
)
"""The columns of a file of the cache. `trained_spans` are the beginning and the end of each run of
trained tokens, one after another; `trained` is the number of those tokens."""

_FORMAT = "sailplan_tokens"


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeEncoder:
    """Encodes ranges of the rows of a split; a copy of it works in each worker."""

    raw: datasets.Dataset
    """The rows."""
    numbers: Sequence[int]
    """Each row's number before any were held out."""
    encode: RowEncoder
    """Encodes one."""

    def __call__(self, rows: range) -> pa.RecordBatch:
        """Returns the rows encoded, in the columns of `FEATURES`.

        Raises:
            DataError: A row cannot be trained on; it is the first one.
        """
        columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
        given: dict[str, list[Any]] = self.raw[rows.start : rows.stop]
        for index, values in zip(rows, zip(*given.values(), strict=True), strict=True):
            row = dict(zip(given, values, strict=True))
            encoded, entry, num_images = self.encode(self.numbers[index], row)
            ids = _array(encoded.input_ids)
            spans = spans_of(_array(encoded.labels) != UNTRAINED)
            found = {
                "input_ids": ids,
                "trained_spans": spans,
                "length": len(ids),
                "trained": int((spans[1::2] - spans[::2]).sum()),
                "num_images": num_images,
                "image_tokens": encoded.image_tokens,
                "row": index,
                "entry": entry,
                "method": encoded.method,
            }
            for name, value in found.items():
                columns[name].append(value)
        return pa.RecordBatch.from_pydict(columns, schema=FEATURES.arrow_schema)


def _array(numbers: list[int]) -> Ints:
    """Returns `np.asarray(numbers)`, which would take three times as long."""
    return np.frombuffer(array("i", numbers), dtype=np.int32)


def spans_of(trained: NDArray[np.bool_]) -> Ints:
    """Returns where runs begin and end, `[2 * runs]`.

    Args:
        trained: Whether each token is trained, `[tokens]`.
    """
    return np.flatnonzero(np.diff(trained, prepend=False, append=False)).astype(np.int32)


def labels_of(ids: Ints, spans: Ints) -> Ints:
    """Returns the ids within the spans, and -100 elsewhere, `[tokens]`."""
    labels = np.full(len(ids), UNTRAINED, dtype=np.int32)
    pairs = spans.tolist()
    for start, end in zip(pairs[::2], pairs[1::2], strict=True):
        labels[start:end] = ids[start:end]
    return labels


def column(rows: datasets.Dataset, name: str) -> NDArray[Any]:
    """Returns a column of numbers of encoded rows, `[rows]`, without reading the rows."""
    values: NDArray[Any] = rows.data.column(name).to_numpy()
    return values if rows._indices is None else values[rows._indices.column(0).to_numpy()]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Origins:
    """Where encoded rows are from: their places, and the images that they are read with.

    Joining the tables instead would copy the images of every dataset whose rows were selected.
    """

    split: str
    """`train` or `eval`."""
    images: datasets.Dataset | None
    """The raw rows, with the image columns alone; None where there are none."""
    numbers: range | NDArray[np.int64]
    """Each row's number before any were held out."""
    entries: tuple[Entry, ...]
    """The sources of all rows."""

    def place(self, row: int) -> str:
        """Says where a user finds a row."""
        return f"{self.split} {place(self.entries, int(self.numbers[row]))}"


def as_arrays(rows: datasets.Dataset, origins: Origins) -> datasets.Dataset:
    """Returns rows that are read as the collator takes them.

    A row then has the columns of the file, but `labels` for `trained_spans`; `input_ids` and
    `labels` are arrays of 32-bit integers, `[tokens]`. It has `place` as well, and with images the
    raw image columns. A batch of rows has the same, in lists.

    Args:
        rows: Rows of a file of the cache.
        origins: Where they are from.
    """
    return rows.with_format(_FORMAT, origins=origins)


class _Arrays(Formatter[Any, Any, Any]):
    """Reads straight from the table: by way of Python's lists, a row takes ten times as long."""

    def __init__(
        self,
        features: datasets.Features | None = None,
        token_per_repo_id: Mapping[str, Any] | None = None,
        *,
        origins: Origins | None = None,
    ) -> None:
        self.features, self.token_per_repo_id = features, token_per_repo_id
        self.origins = origins

    def format_row(self, pa_table: pa.Table) -> dict[str, Any]:
        with READING:
            return self._row(pa_table)

    def format_batch(self, pa_table: pa.Table) -> dict[str, list[Any]]:
        with READING:
            return self._batch(pa_table)

    def format_column(self, pa_table: pa.Table) -> list[Any]:
        return next(iter(self._columns(pa_table).values()))

    def _row(self, table: pa.Table) -> dict[str, Any]:
        row = {name: values[0] for name, values in self._columns(table).items()}
        if self.origins is None or "input_ids" not in row or "row" not in row:
            return row
        number, images = row["row"], self.origins.images
        row["place"] = self.origins.place(number)
        return row if images is None else {**row, **images[number]}

    def _batch(self, table: pa.Table) -> dict[str, list[Any]]:
        rows = self._columns(table)
        if self.origins is None or "input_ids" not in rows or "row" not in rows:
            return rows
        numbers, images = rows["row"], self.origins.images
        rows["place"] = [self.origins.place(number) for number in numbers]
        return rows if images is None else {**rows, **images[numbers]}

    def _columns(self, table: pa.Table) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {}
        for name, values in zip(table.column_names, table.columns, strict=True):
            is_list = pa.types.is_list(values.type)
            columns[name] = _arrays(values) if is_list else values.to_pylist()
        if "trained_spans" in columns and "input_ids" in columns:
            spans = columns.pop("trained_spans")
            columns["labels"] = list(map(labels_of, columns["input_ids"], spans))
        return columns


def _arrays(column: pa.ChunkedArray) -> list[Ints]:
    """Returns the lists of a column as arrays, copied: the file may only be read."""
    found: list[Ints] = []
    for chunk in column.chunks:
        values = chunk.values.to_numpy()
        ends = chunk.offsets.to_numpy().tolist()
        found += [values[a:b].copy() for a, b in pairwise(ends)]
    return found


_register_formatter(_Arrays, _FORMAT)
