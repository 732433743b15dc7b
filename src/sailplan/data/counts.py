"""What is in a batch and what making it took, counted where it is made: in the workers.

On the way to the GPU a batch is tensors whose look costs a wait. In the worker the rows are plain
lists, and counting them takes no time that training would miss. The counts travel beside the
model's inputs as plain numbers, which neither torch, accelerate nor DeepSpeed touch; the trainer
takes them out (docs/decisions/0018).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import get_worker_info

from sailplan.data.labels import UNTRAINED

COUNTS = "counts"
"""The key of a batch that holds its `BatchCounts`."""

T = TypeVar("T")

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchCounts:
    """What one micro batch of one rank holds, and the seconds of its worker."""

    tokens: int
    """Of the rows; neither padding nor what stands in for a missing image."""
    trained: int
    """Tokens that the loss is on."""
    samples: int
    """Rows of the data, however many share a row of the batch."""
    images: int
    image_tokens: int
    """Tokens that stand for images."""
    padding: int
    """What the model sees beside `tokens`."""
    squares: int
    """The squared lengths of the rows, added up: what attention takes grows with it."""
    pixels: int
    """Numbers in `pixel_values`."""
    read_s: float = 0.0
    """Reading its rows, and in a stream encoding them."""
    collate_s: float = 0.0
    """Opening its images, and making tensors of them and of the rows."""
    cpu_s: float = 0.0
    """What of both a core was at work."""


class Stopwatch:
    """Adds up what this process spends on something, between two batches."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._seconds += time.perf_counter() - self._began

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items, and counts what getting each of them takes."""
        iterator = iter(items)
        while True:
            with self:
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def taken(self) -> float:
        """Returns the seconds since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


READING = Stopwatch()
"""What reads rows runs under it, in whichever process that is."""


def count_batch(rows: Rows, batch: Mapping[str, torch.Tensor]) -> BatchCounts:
    """Counts a batch.

    Args:
        rows: What it was made of: `input_ids`, and where they have images `num_images` and
            `image_tokens`.
        batch: The model's inputs: `input_ids` and `labels`, `[rows, tokens]`, or `shift_labels`.
    """
    lengths = np.array([len(row["input_ids"]) for row in rows], dtype=np.int64)
    tokens = int(lengths.sum())
    ids = batch["input_ids"]
    # The first label of a row is never predicted.
    labels = batch["shift_labels"] if "shift_labels" in batch else batch["labels"][..., 1:]
    pixels = batch.get("pixel_values")
    return BatchCounts(
        tokens=tokens,
        trained=int(labels.ne(UNTRAINED).sum()),
        samples=len(rows),
        images=sum(int(row.get("num_images") or 0) for row in rows),
        image_tokens=sum(int(row.get("image_tokens") or 0) for row in rows),
        padding=ids.numel() - tokens,
        squares=int((lengths**2).sum()),
        pixels=0 if pixels is None else pixels.numel(),
    )


class CountingCollator:
    """A collator whose batches come with their counts, under `COUNTS`.

    Args:
        collator: Makes the model's inputs of rows.
    """

    def __init__(self, collator: Callable[[Rows], dict[str, Any]]) -> None:
        self.collator = collator
        self._process, self._cpu_s = 0, 0.0

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Returns what the collator makes of the rows, and the counts."""
        began, cpu_s = time.perf_counter(), time.process_time()
        batch = self.collator(rows)
        counts = count_batch(rows, batch)
        # A worker does nothing else from one batch to the next: its reading counts too.
        if get_worker_info() is not None and self._process == os.getpid():
            cpu_s = self._cpu_s
        self._process, self._cpu_s = os.getpid(), time.process_time()
        counts = replace(
            counts,
            read_s=READING.taken(),
            collate_s=time.perf_counter() - began,
            cpu_s=self._cpu_s - cpu_s,
        )
        return {**batch, COUNTS: counts}
