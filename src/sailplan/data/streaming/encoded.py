"""The encoded rows of a run that streams, as the trainer is given them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import datasets
from datasets.iterable_dataset import ExamplesIterable

from sailplan.data.batch_rows import BROKEN
from sailplan.data.counts import READING
from sailplan.data.streaming.order import Position
from sailplan.data.streaming.parts import Row
from sailplan.data.streaming.stream import Stream
from sailplan.errors import DataError

MOST_LEFT_OUT = 10_000
"""So many rows one after another that are all too long are an error."""


class Encode(Protocol):
    """Encodes one raw row."""

    def __call__(self, entry: int, where: str, row: Row, /) -> dict[str, Any] | None:
        """Returns the row as the collator takes it, None where it is left out.

        Args:
            entry: The index of its entry.
            where: Where a user finds it within the entry.
            row: The row.
        """


class EncodedStream(datasets.IterableDataset):
    """The encoded rows that belong to this rank.

    `training_loader` draws them. Iterating it is for a look at what they are, as TRL's trainer has
    one: it yields all rows once, in the order of the files.

    Args:
        stream: The raw rows.
        encode: Encodes one of them.
        rank: This process's number.
        world_size: The number of processes.
    """

    def __init__(self, stream: Stream, encode: Encode, *, rank: int, world_size: int) -> None:
        super().__init__(ExamplesIterable(_nothing, {}), info=datasets.DatasetInfo())
        self.stream, self.encode = stream, encode
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields all rows once, in the order of the files."""
        for row in self.stream.in_files():
            encoded = self.encode(row.entry, self.stream.place(row), row.values)
            if encoded is not None and BROKEN not in encoded:
                yield encoded

    def rows(
        self, worker: int, num_workers: int, start: Position | None = None
    ) -> Iterator[tuple[Position, dict[str, Any]]]:
        """Yields the rows of one of this rank's workers for ever, each with the position behind it.

        Args:
            worker: The worker's number.
            num_workers: How many workers each rank has.
            start: Where to go on; at the beginning where it is not given.

        Raises:
            DataError: A row cannot be read or trained on, all are too long, or there are fewer
                rows than ranks.
        """
        return READING.over(self._encoded(worker, num_workers, start))

    def _encoded(
        self, worker: int, num_workers: int, start: Position | None
    ) -> Iterator[tuple[Position, dict[str, Any]]]:
        left_out = 0
        drawn = self.stream.drawn(
            self.rank * num_workers + worker,
            self.world_size * num_workers,
            start,
            fewest=self.world_size,
        )
        for position, row in drawn:
            encoded = self.encode(row.entry, self.stream.place(row), row.values)
            if encoded is not None:
                left_out = 0
                yield position, encoded
                continue
            left_out += 1
            if left_out == MOST_LEFT_OUT:
                raise DataError(
                    f"{left_out} rows of the stream one after another are longer than max_length",
                    todo="raise max_length, or lower max_pixels",
                )


def _nothing() -> Iterator[Any]:
    yield from ()
