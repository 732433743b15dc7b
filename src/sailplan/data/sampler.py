"""Which samples a rank trains on in each micro batch.

An optimizer step trains the samples that plain shuffling would have given it. Which rank and micro
batch each of them goes to changes nothing of the step's gradient, so they are dealt by their work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.trainer_pt_utils import BatchRebalanceSampler

from sailplan.data.balance import Work, deal
from sailplan.data.token_rows import column


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """What the sampler knows of the samples."""

    lengths: NDArray[np.int64]
    """Tokens of each, `[samples]`."""
    image_tokens: NDArray[np.int64]
    """Those of them that stand for images."""
    work: Work
    """What they cost."""

    @classmethod
    def of(cls, rows: Any, work: Work) -> Samples:
        """Reads the columns of a `Dataset` of encoded rows."""
        lengths, image_tokens = (column(rows, name) for name in ("length", "image_tokens"))
        return cls(lengths=lengths, image_tokens=image_tokens, work=work)


class StepSampler(BatchRebalanceSampler):
    """Yields the indices of this rank's micro batches.

    transformers' own sampler with five things otherwise: the epoch follows from the optimizer step,
    since `set_epoch` does not reach it through accelerate's wrapper (transformers 5.23) and a run
    that goes on would see other rows; the seed is the run's; the cost knows images; samples that
    share a row without padding need not be alike in length; and where an epoch's last step has
    fewer samples than micro batches, some are empty, instead of samples being trained twice.

    Args:
        samples: What is drawn from.
        packs: Whether the samples of a micro batch share a row, instead of being padded.
        step_samples: Samples of an optimizer step over all ranks.
        ranks: How many there are.
        accumulation: Micro batches of a step.
        rank: This one's number.
        seed: Of the order; None keeps the samples in theirs.
        step: Returns the optimizer steps that are done.
        drop_last: Whether to leave out what does not fill a last step.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        packs: bool,
        step_samples: int,
        ranks: int,
        accumulation: int,
        rank: int,
        seed: int | None,
        step: Callable[[], int],
        drop_last: bool,
    ) -> None:
        super().__init__(
            samples.lengths.tolist(),
            step_samples,
            ranks,
            accumulation,
            shuffle=seed is not None,
            seed=seed or 0,
            rank=rank,
            drop_last=drop_last,
        )
        self.samples, self.packs, self._step = samples, packs, step
        self._costs = samples.work.of(samples.lengths, samples.image_tokens)
        self._images = samples.work.image_token * samples.image_tokens

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the micro batches of the epoch that the run is in."""
        self.epoch = self._step() // max(1, self.num_global_batches)
        order = self.order(self.epoch).tolist()
        for step in range(self.num_global_batches):
            start = step * self.effective_batch_size
            yield from self._yield_global_batch(order[start : start + self.effective_batch_size])

    def steps(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """Yields the samples of an epoch's optimizer steps, `[steps, samples]`.

        What is left at the end for a smaller one comes by itself.
        """
        full = self.num_full_batches * self.effective_batch_size
        steps, rest = np.split(self.order(epoch), [full])
        if len(steps):
            yield steps.reshape(self.num_full_batches, self.effective_batch_size)
        if self.has_tail:
            yield rest[None]

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Returns the samples in the order in which steps take them, `[samples]`."""
        count = len(self.lengths)
        if not self.shuffle:
            return np.arange(count)
        chance = torch.Generator().manual_seed(self.seed + epoch)
        return torch.randperm(count, generator=chance).numpy()

    def _cost(self, bs: int, max_len: int) -> float:
        """Returns the work of the text of so many samples, padded to one length."""
        return bs * float(self.samples.work.of(max_len, 0))

    def _group_cost(self, group: Sequence[tuple[int, int]]) -> float:
        """Returns the work of samples that are padded to the first, which is the longest."""
        if not group:
            return 0.0
        images = sum(float(self._images[index]) for index, _ in group)
        return self._cost(len(group), group[0][1]) + images

    def _assign(self, indices: list[int], lengths: list[int]) -> list[list[list[int]]]:
        """Returns the samples of each rank's micro batches, `[rank][micro batch]`."""
        groups = self.dp_size * self.grad_accum
        if not self.packs and len(indices) > groups:
            return super()._assign(indices, lengths)  # type: ignore[no-any-return]
        dealt = [
            [indices[member] for member in group] for group in deal(self._costs[indices], groups)
        ]
        return [dealt[rank :: self.dp_size] for rank in range(self.dp_size)]
