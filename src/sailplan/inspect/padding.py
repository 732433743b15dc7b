"""What padding costs at a run's micro batch, and what packing would save of it."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_EPOCHS = 5
"""Orders that are drawn: the share of padding hardly differs between them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Padding:
    """The tokens of an epoch: those of samples, and those that only fill up."""

    micro_batch_size: int
    """Samples that are padded to the longest of them."""
    order: str
    """How samples are drawn: `random`, `sequential` or `group_by_length`."""
    sample_tokens: int
    """Of all samples of an epoch."""
    padding_tokens: int
    """Of an epoch at this micro batch, the mean of several orders where it is random."""
    packed_length_tokens: int
    """The length of a packed sequence: `max_length`, else the tokens of the longest micro batch."""
    packed_sequences: int
    """Into how many of that length all samples fit, by best fit decreasing."""

    @property
    def share(self) -> float:
        """The part of the tokens in batches that is padding, all of which packing would save."""
        total = self.sample_tokens + self.padding_tokens
        return self.padding_tokens / total if total else 0.0

    @property
    def packed_fill(self) -> float:
        """How full packed sequences are: what is missing is left out, and costs no computing."""
        return self.sample_tokens / (self.packed_sequences * self.packed_length_tokens)


def padding_of(
    lengths: NDArray[np.int64],
    *,
    micro_batch_size: int,
    order: str = "random",
    limit: int | None = None,
    multiple: int | None = None,
    seed: int = 0,
) -> Padding:
    """Counts the padding of an epoch by dealing out batches as the trainer does.

    Args:
        lengths: The tokens of each sample, `[samples]`.
        micro_batch_size: Samples of a micro batch.
        order: The run's `train_sampling_strategy`.
        limit: Most tokens of a sample; also the length of a packed sequence.
        multiple: Batches are padded to a multiple of this many tokens.
        seed: Of the orders that are drawn.
    """
    padding = [
        _padded(lengths[chosen], micro_batch_size, multiple or 1) - int(lengths.sum())
        for chosen in _orders(lengths, micro_batch_size, order, seed)
    ]
    longest = int(lengths.max(initial=1))
    capacity = max(limit or 0, longest) if limit else longest * micro_batch_size
    capacity = min(capacity, max(longest, int(lengths.sum())))
    return Padding(
        micro_batch_size=micro_batch_size,
        order=order,
        sample_tokens=int(lengths.sum()),
        padding_tokens=round(float(np.mean(padding))),
        packed_length_tokens=capacity,
        packed_sequences=best_fit(lengths, capacity),
    )


def best_fit(lengths: NDArray[np.int64], capacity: int) -> int:
    """Returns how many sequences of `capacity` tokens hold all samples, by best fit decreasing.

    Each sample goes where it leaves the least room. Samples of one length are dealt out together,
    so that a million rows take a moment.
    """
    room: Counter[int] = Counter()
    sorted_rooms: list[int] = []
    opened = 0
    values, counts = np.unique(lengths[lengths > 0], return_counts=True)
    for length, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        left = count
        while left:
            at = bisect_left(sorted_rooms, length)
            if at == len(sorted_rooms):
                # New ones take as many of this length as they can.
                each = capacity // length
                full, rest = divmod(left, each)
                opened += full + (rest > 0)
                for free, number in (
                    (capacity - each * length, full),
                    (capacity - rest * length, rest > 0),
                ):
                    if number and free:
                        _add(room, sorted_rooms, free, int(number))
                break
            free = sorted_rooms[at]
            taken = min(left, room[free])
            room[free] -= taken
            if not room[free]:
                del sorted_rooms[at]
            if free > length:
                _add(room, sorted_rooms, free - length, taken)
            left -= taken
    return opened


def _add(room: Counter[int], sorted_rooms: list[int], free: int, count: int) -> None:
    if not room[free]:
        insort(sorted_rooms, free)
    room[free] += count


def _orders(
    lengths: NDArray[np.int64], micro_batch_size: int, order: str, seed: int
) -> list[NDArray[np.int64]]:
    if order == "sequential":
        return [np.arange(len(lengths))]
    if order == "group_by_length":
        import torch
        from transformers.trainer_pt_utils import get_length_grouped_indices

        chance = torch.Generator().manual_seed(seed)
        grouped = get_length_grouped_indices(lengths.tolist(), micro_batch_size, generator=chance)
        return [np.asarray(grouped)]
    chance_of = np.random.default_rng(seed)
    return [chance_of.permutation(len(lengths)) for _ in range(_EPOCHS)]


def _padded(lengths: NDArray[np.int64], micro_batch_size: int, multiple: int) -> int:
    """Returns the tokens of all batches of samples in this order, padding included."""
    starts = np.arange(0, len(lengths), micro_batch_size)
    longest = -(-np.maximum.reduceat(lengths, starts) // multiple) * multiple
    sizes = np.diff(np.append(starts, len(lengths)))
    return int((longest * sizes).sum())
