"""Rows that are read while training: in an order that every process knows, each by one of them.

Every process, and in it every worker of the DataLoader, reads the same rows in the same order;
which of them encodes a row follows from the row's place in that order. So no row comes twice and
none is left out, whatever the number of ranks, workers and files, and a run that goes on reads on
where it was. A pass that ends is followed by the next, in another order, until `max_steps` is
reached: no rank ever waits for rows that another one has.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from datasets.iterable_dataset import ExamplesIterable

from sailplan.data.counts import READING
from sailplan.errors import DataError, RunFileError

if TYPE_CHECKING:
    from sailplan.run.config import Run

ENTRY_ROWS = 10**12
"""Row numbers of one entry begin that far from those of the entry before: its length is unknown."""

_READ_ROWS = 16
"""Rows that are read at once."""

Row = Mapping[str, Any]
Numbered = tuple[int, Row]
"""A row and its number, of which the entry is a part."""


def is_streaming(run: Run) -> bool:
    """Whether the rows are read while training."""
    return bool(run.get("dataset_streaming") or run.get("streaming"))


def check_streaming(run: Run) -> None:
    """Refuses settings that need to know all rows beforehand.

    Raises:
        RunFileError: Such a setting is written, or `max_steps` is not.
    """
    if run.get("max_steps") <= 0:
        raise RunFileError("dataset_streaming without max_steps", todo="set max_steps")
    held_out = run.get("eval_size")
    if held_out is not None and held_out < 1:
        raise RunFileError(
            f"eval_size {held_out:g} of a stream", allowed="a count: a stream has no known length"
        )
    if run.get("test_split_size") is not None:
        raise RunFileError("test_split_size of a stream", todo="set eval_size, a count of rows")
    strategy = run.get("train_sampling_strategy")
    if strategy not in (None, "random"):
        raise RunFileError(
            f"train_sampling_strategy {strategy} with dataset_streaming",
            todo="drop it: a stream has its own order",
        )


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Raw rows in order, as `Rows.train` of a run that streams."""

    parts: Sequence[datasets.IterableDataset]
    """The rows of each entry."""
    shares: Sequence[float] | None
    """The part of the rows that each entry has, None where they follow one another."""
    seed: int
    """Of the order."""
    buffer_size: int
    """The rows among which the next is drawn; 1 keeps the order of the files."""
    held_out: frozenset[int] = frozenset()
    """Numbers of rows that are not trained on."""
    features: datasets.Features = field(default_factory=datasets.Features)
    """The columns of all entries."""

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        return list(self.features)

    def __iter__(self) -> Iterator[Row]:
        """Yields the rows of the files, in their order."""
        return (row for _, row in self.numbered())

    def numbered(self) -> Iterator[Numbered]:
        """Yields all rows with their numbers, unshuffled, held-out ones too."""
        sources: list[Iterator[Numbered]] = [
            enumerate(_rows(part), start=index * ENTRY_ROWS)
            for index, part in enumerate(self.parts)
        ]
        if self.shares is None:
            yield from itertools.chain.from_iterable(sources)
            return
        # As with files that are read at once: the mixture ends where an entry has no more rows.
        chance = np.random.default_rng([self.seed, 1])
        shares = np.asarray(self.shares) / sum(self.shares)
        while True:
            row = next(sources[chance.choice(len(sources), p=shares)], None)
            if row is None:
                return
            yield row

    def epoch(self, number: int) -> Iterator[Numbered]:
        """Yields the rows of one pass over the data, in its order."""
        chance = np.random.default_rng([self.seed, 2, number])
        buffer: list[Numbered] = []
        rows = ((n, row) for n, row in self.numbered() if n not in self.held_out)
        for row in rows:
            if len(buffer) < self.buffer_size:
                buffer.append(row)
                continue
            place = int(chance.integers(len(buffer)))
            drawn, buffer[place] = buffer[place], row
            yield drawn
        for place in chance.permutation(len(buffer)):
            yield buffer[place]


class EncodedStream(datasets.IterableDataset):
    """The encoded rows that belong to this process, for ever.

    Args:
        stream: The raw rows.
        encode: Encodes one numbered row; None leaves it out.
        rank: This process's number.
        world_size: The number of processes.
        batch_size: Rows of a batch, which a worker makes alone.
    """

    def __init__(
        self,
        stream: Stream,
        encode: Callable[[int, Row], dict[str, Any] | None],
        *,
        rank: int,
        world_size: int,
        batch_size: int,
    ) -> None:
        super().__init__(ExamplesIterable(_nothing, {}), info=datasets.DatasetInfo())
        self.stream, self.encode = stream, encode
        self.rank, self.world_size, self.batch_size = rank, world_size, batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the rows of this process, and in a DataLoader's worker those of its batches."""
        return READING.over(self._encoded())

    def _encoded(self) -> Iterator[dict[str, Any]]:
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        for place, (row_number, row) in enumerate(self._mine()):
            if place // self.batch_size % count == number:
                encoded = self.encode(row_number, row)
                if encoded is not None:
                    yield encoded

    def _mine(self) -> Iterator[Numbered]:
        for epoch in itertools.count():
            rows = self.stream.epoch(epoch)
            found = False
            for row in itertools.islice(rows, self.rank, None, self.world_size):
                found = True
                yield row
            if not found:
                raise DataError(
                    f"the stream has fewer rows than the run has ranks ({self.world_size})"
                )


def held_out_rows(
    rows: Iterable[Numbered], count: int, features: datasets.Features
) -> tuple[list[int], datasets.Dataset]:
    """Returns the first rows of a stream with their numbers, to be held out.

    Raises:
        DataError: The stream has no more rows than that.
    """
    taken = list(itertools.islice(rows, count + 1))
    if len(taken) <= count:
        raise DataError(
            f"eval_size {count} of a stream of {len(taken)} rows", todo="hold fewer rows out"
        )
    table = datasets.Dataset.from_list([dict(row) for _, row in taken[:count]], features=features)
    return [number for number, _ in taken[:count]], table


def _rows(part: datasets.IterableDataset) -> Iterator[Row]:
    """Yields all rows, in a DataLoader's worker too, where `datasets` would deal out files."""
    for batch in part.iter(batch_size=_READ_ROWS):
        columns = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def _nothing() -> Iterator[Any]:
    yield from ()
