"""What fills the micro batches of a run: its samples, as training deals them, and padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sailplan.data.extent import batch_words, epochs_of, extent_of
from sailplan.data.sampler import Samples, StepSampler

_ORDERS = 5
"""Random orders that are drawn: the share of padding hardly differs between them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Padding:
    """The tokens of an epoch: those of samples, and those that only fill up."""

    micro_batch_size: int
    """Samples of a micro batch, on average."""
    step_samples: int
    """Samples of an optimizer step over all ranks."""
    packs: bool
    """Whether the samples of a micro batch share a row."""
    why: str
    """Why they do or do not, as training says it."""
    sample_tokens: int
    """Of all samples of an epoch."""
    share: float
    """Of the tokens in micro batches as training makes them, what is padding."""
    random_share: float
    """The same of random micro batches, each padded to its longest sample."""
    largest_samples: int
    """Of the largest micro batch of the run."""
    largest_tokens: int
    """Of the same, padding among them."""
    imbalance: float | None
    """By how much the heaviest micro batch of a step is above the mean one, on average; None where
    samples are not dealt by their work, or a step has one micro batch alone."""

    @property
    def padding_tokens(self) -> int:
        """Of an epoch."""
        return round(self.sample_tokens * self.share / (1 - self.share))

    @property
    def words(self) -> str:
        """The micro batches in a clause."""
        made = batch_words(self.largest_samples, self.largest_tokens, packs=self.packs)
        if self.imbalance is None:
            return made
        return (
            f"{made}; of the micro batches of a step, the heaviest is {self.imbalance:.0%} "
            "above the mean"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What of a run decides on its micro batches."""

    packs: bool
    why: str
    micro_batch_size: int
    step_samples: int
    order: str = "random"
    """`train_sampling_strategy`."""
    dealt: bool = True
    """Whether the samples of a step are dealt by their work."""
    multiple: int = 1
    """What rows are filled up to a multiple of, in tokens."""
    seed: int = 0
    epochs: float = 1.0
    max_steps: int = -1
    drop_last: bool = False


def padding_of(samples: Samples, settings: Settings) -> Padding:
    """Counts what fills micro batches, by dealing them as the trainer does.

    Args:
        samples: The samples; one at least.
        settings: How they are dealt.
    """
    size, lengths = settings.micro_batch_size, samples.lengths
    chance = np.random.default_rng(settings.seed)
    orders = [chance.permutation(len(lengths)) for _ in range(_ORDERS)]
    tokens = int(lengths.sum())
    padded = float(np.mean([_padded(lengths[order], size, settings) for order in orders]))
    dealt = _dealt(samples, settings) if settings.dealt else _drawn(samples, settings, orders[0])
    largest_samples, largest_tokens, share, imbalance = dealt
    return Padding(
        micro_batch_size=size,
        step_samples=settings.step_samples,
        packs=settings.packs,
        why=settings.why,
        sample_tokens=tokens,
        share=share,
        random_share=1 - tokens / padded,
        largest_samples=largest_samples,
        largest_tokens=_up(largest_tokens, settings) if settings.packs else largest_tokens,
        imbalance=imbalance,
    )


def _dealt(samples: Samples, settings: Settings) -> tuple[int, int, float, float | None]:
    """Returns samples and tokens of the largest, the share of padding, and the imbalance."""
    groups = max(1, settings.step_samples // settings.micro_batch_size)
    lengths = samples.lengths
    if not settings.packs:  # the longest is filled up, and the others to it
        lengths = _up(lengths, settings)
    sampler = StepSampler(
        Samples(lengths=lengths, image_tokens=samples.image_tokens, work=samples.work),
        packs=settings.packs,
        step_samples=groups * settings.micro_batch_size,
        ranks=1,
        accumulation=groups,
        rank=0,
        seed=None if settings.order == "sequential" else settings.seed,
        step=lambda: 0,
        drop_last=settings.drop_last,
    )
    epochs = epochs_of(sampler, epochs=settings.epochs, max_steps=settings.max_steps)
    found = extent_of(sampler, epochs)
    share = 1 - (1 - found.padding) * float(samples.lengths.sum() / lengths.sum())
    if settings.packs:  # a row ends anywhere within the multiple
        rest = (settings.multiple - 1) / 2
        share = rest / (found.mean_tokens + rest)
    return len(found.members), found.tokens, share, found.imbalance if groups > 1 else None


def _drawn(
    samples: Samples, settings: Settings, order: NDArray[np.int64]
) -> tuple[int, int, float, None]:
    """Returns the same where samples come together by chance, or as transformers groups them."""
    size, lengths = settings.micro_batch_size, samples.lengths
    if settings.order == "group_by_length":
        import torch
        from transformers.trainer_pt_utils import get_length_grouped_indices

        seed = torch.Generator().manual_seed(settings.seed)
        order = np.asarray(get_length_grouped_indices(lengths.tolist(), size, generator=seed))
    lengths = lengths[order]
    starts = np.arange(0, len(lengths), size)
    sums = np.add.reduceat(lengths, starts)
    if settings.packs:
        held, largest = _up(sums, settings), int(sums.argmax())
    else:
        held = _up(np.maximum.reduceat(lengths, starts), settings) * _sizes(starts, len(lengths))
        largest = int(held.argmax())
    count = int(_sizes(starts, len(lengths))[largest])
    return count, int(held[largest]), 1 - float(sums.sum() / held.sum()), None


def _padded(lengths: NDArray[np.int64], size: int, settings: Settings) -> int:
    """Returns the tokens of all batches of samples in this order, padding included."""
    starts = np.arange(0, len(lengths), size)
    longest = _up(np.maximum.reduceat(lengths, starts), settings)
    return int((longest * _sizes(starts, len(lengths))).sum())


def _sizes(starts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return np.diff(np.append(starts, count))


def _up(lengths: Any, settings: Settings) -> Any:
    """Returns lengths filled up to the multiple."""
    return -(-lengths // settings.multiple) * settings.multiple
