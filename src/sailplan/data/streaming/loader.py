"""Hands out the micro batches of a run that streams, and knows where each worker stands.

A worker makes whole optimizer steps: the micro batches that a rank takes between two steps of the
optimizer, and the workers take turns. So the samples of a step can be dealt to its micro batches by
their work without a word between workers, and the order does not depend on who is faster. It costs
no time: transformers' trainer takes all micro batches of a step before it trains the first, since
it divides the loss by the tokens of all of them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sailplan.data.balance import deal
from sailplan.data.streaming.encoded import EncodedStream
from sailplan.data.streaming.order import Position
from sailplan.errors import DataError

EncodedRow = Mapping[str, Any]
Collate = Callable[[Sequence[EncodedRow]], Any]
Work = Callable[[EncodedRow], float]
"""What a sample costs, in any unit."""


def training_loader(
    stream: EncodedStream,
    collate: Collate,
    *,
    batch_size: int,
    accumulation: int,
    work: Work | None = None,
    num_workers: int = 0,
    prefetch: int | None = None,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Returns what yields the collated micro batches of this rank for ever.

    Its `dataset` is a `MicroBatches`, whose `state_dict` says where the run is.

    Args:
        stream: The rows.
        collate: Makes a batch of a list of rows.
        batch_size: Samples of a micro batch, on average: a step has exactly `batch_size` ×
            `accumulation` samples of this rank.
        accumulation: Micro batches of a step.
        work: What a sample costs; the micro batches of a step then have nearly equal work and may
            have different numbers of samples. Without it they have `batch_size` samples each.
        num_workers: Processes that read, encode and collate; 0 does it in this one.
        prefetch: Micro batches that a worker makes ahead, rounded up to whole steps; 2 where it
            is not given.
        pin_memory: Whether batches are put where a GPU can fetch them from.
    """
    batches = MicroBatches(
        stream,
        collate,
        batch_size=batch_size,
        accumulation=accumulation,
        work=work,
        num_workers=num_workers,
        prefetch=prefetch or 2,
        pin_memory=pin_memory,
    )
    return DataLoader(batches, batch_size=None, collate_fn=_same)


class MicroBatches(IterableDataset[Any]):
    """The collated micro batches of one rank; see `training_loader` for its settings."""

    def __init__(
        self,
        stream: EncodedStream,
        collate: Collate,
        *,
        batch_size: int,
        accumulation: int,
        work: Work | None,
        num_workers: int,
        prefetch: int,
        pin_memory: bool,
    ) -> None:
        self._stream, self._collate, self._work = stream, collate, work
        self._samples, self._accumulation = batch_size * accumulation, accumulation
        self._workers, self._prefetch, self._pin = num_workers, prefetch, pin_memory
        self._steps = self._passed_over = 0
        self._positions: list[Position | None] = [None] * max(num_workers, 1)

    def __iter__(self) -> Iterator[Any]:
        """Yields batches from where `load_state_dict` says, else from the beginning.

        For each batch that was handed out before that there is a None first: transformers' trainer
        passes over as many, and so reads none of them again.
        """
        passed_over, self._passed_over = self._passed_over, 0
        for _ in range(passed_over):
            yield None
        count = len(self._positions)
        steps = _Steps(
            stream=self._stream,
            num_samples=self._samples,
            num_groups=self._accumulation,
            work=self._work,
            # The process that is asked first makes the next step, whoever's turn it is.
            starts=tuple(
                (number % count, self._positions[number % count])
                for number in range(self._steps, self._steps + count)
            ),
        )
        loader: DataLoader[_Step] = DataLoader(
            _Stepping(steps),
            batch_size=None,
            collate_fn=_CollateStep(self._collate),  # type: ignore[arg-type]  # a whole step
            num_workers=self._workers,
            prefetch_factor=-(-self._prefetch // self._accumulation) if self._workers else None,
            pin_memory=self._pin,
        )
        for step in loader:
            *first, last = step.batches
            yield from first
            self._positions[self._steps % count] = step.position
            self._steps += 1
            yield last

    def state_dict(self) -> dict[str, Any]:
        """Returns where this rank stands after the steps that were handed out, as plain JSON.

        Rows that workers have read ahead do not count.
        """
        return {
            **self._identity(),
            "steps": self._steps,
            "positions": [place and place.as_json() for place in self._positions],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken; each worker reads at most one window again.

        Raises:
            DataError: It was taken from other data, another order, or of other ranks or workers.
        """
        own = self._identity()
        for name, value in own.items():
            if state[name] != value:
                raise DataError(
                    f"the stream stood at a place of {name} {state[name]}, and now has {value}",
                    todo="go on with the settings of the first run",
                )
        self._steps = state["steps"]
        self._passed_over = self._steps * self._accumulation
        self._positions = [place and Position.from_json(place) for place in state["positions"]]

    def _identity(self) -> dict[str, Any]:
        stream = self._stream.stream
        return {
            "ranks": self._stream.world_size,
            "rank": self._stream.rank,
            "workers": len(self._positions),
            "samples": self._samples,
            "seed": stream.seed,
            "window_rows": stream.window_rows,
            "units": [part.num_units for part in stream.parts],
        }


class _Step(NamedTuple):
    """The micro batches of one optimizer step of a rank."""

    batches: list[Any]
    """Lists of rows, or what was made of them."""
    position: Position
    """Where the worker stands behind it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Steps:
    """Reads the steps of a worker."""

    stream: EncodedStream
    num_samples: int
    num_groups: int
    work: Work | None
    starts: tuple[tuple[int, Position | None], ...]
    """For each process of the loader whose rows it reads, and where it goes on."""

    def of(self, process: int) -> Iterator[_Step]:
        """Yields the steps that one process of the loader makes, for ever."""
        worker, start = self.starts[process]
        rows: list[EncodedRow] = []
        for position, row in self.stream.rows(worker, len(self.starts), start):
            rows.append(row)
            if len(rows) == self.num_samples:
                yield _Step(self._dealt(rows), position)
                rows = []

    def _dealt(self, rows: list[EncodedRow]) -> list[list[EncodedRow]]:
        if self.work is None:
            size = self.num_samples // self.num_groups
            return [rows[start : start + size] for start in range(0, len(rows), size)]
        groups = deal([self.work(row) for row in rows], self.num_groups)
        return [[rows[number] for number in group] for group in groups]


class _Stepping(IterableDataset[_Step]):
    """The steps of whichever process iterates it."""

    def __init__(self, steps: _Steps) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[_Step]:
        worker = get_worker_info()
        if worker:
            gc.freeze()  # what was imported stays on the pages that all processes share
        return self._steps.of(worker.id if worker else 0)


@dataclass(frozen=True, slots=True)
class _CollateStep:
    """Collates the micro batches of a step, in the worker that made it."""

    collate: Collate

    def __call__(self, step: _Step) -> _Step:
        return _Step([self.collate(rows) for rows in step.batches], step.position)


def _same(batch: Any) -> Any:
    return batch
