"""Deals the samples of an optimizer step into rows of nearly equal work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a sample costs, in tokens of the language model.

    Attention rises with the square of a sample's length, and images pass the vision tower before
    their tokens reach the language model.
    """

    attention: float = 0.0
    """Of a token that attends to one other: `1 / (12 · hidden_size)`, see `sailplan.data.work`."""
    image_token: float = 0.0
    """Of the vision patches behind one image token."""

    def of(self, lengths: ArrayLike, image_tokens: ArrayLike) -> NDArray[np.float64]:
        """Returns the work of samples.

        Args:
            lengths: Tokens of each, `[samples]`.
            image_tokens: Those of them that stand for images, `[samples]`.
        """
        tokens = np.asarray(lengths, dtype=np.float64)
        images = np.asarray(image_tokens, dtype=np.float64)
        return tokens * (1 + self.attention * tokens) + self.image_token * images

    def of_row(self, row: Mapping[str, Any]) -> float:
        """Returns the work of an encoded row."""
        return float(self.of(len(row["input_ids"]), row.get("image_tokens", 0)))


def deal(work: Sequence[float] | NDArray[np.float64], groups: int) -> list[list[int]]:
    """Returns the indices of the samples of each group, the heaviest group first.

    None is empty where there are at least as many samples as groups; else each sample has its own.

    Args:
        work: Of each sample, above zero.
        groups: How many.
    """
    weights = np.asarray(work, dtype=np.float64)[None]
    group_of = deal_steps(weights, groups)[0]
    dealt = [np.flatnonzero(group_of == group).tolist() for group in range(groups)]
    return sorted(dealt, key=lambda group: -float(weights[0, group].sum()))


def deal_steps(work: NDArray[np.float64], groups: int) -> NDArray[np.int64]:
    """Returns which group each sample of each step goes to, `[steps, samples]`.

    The heaviest that is left goes where there is least (longest processing time first: the heaviest
    group is at most a third above the best possible, R. L. Graham 1969).

    Args:
        work: Of each sample, above zero, `[steps, samples]`.
        groups: How many each step is dealt into.
    """
    steps = np.arange(len(work))
    load = np.zeros((len(work), groups))
    group_of = np.empty(work.shape, dtype=np.int64)
    order = np.argsort(-work, axis=1, kind="stable")
    for sample in order.T:
        lightest = load.argmin(axis=1)
        group_of[steps, sample] = lightest
        load[steps, lightest] += work[steps, sample]
    return group_of
