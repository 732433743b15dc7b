"""Deals samples so that all groups have nearly equal work."""

from __future__ import annotations

from collections.abc import Sequence


def deal(work: Sequence[float], groups: int) -> list[list[int]]:
    """Returns the indices of the samples of each group, in order; no group is empty.

    The sample with most work goes first, each to the group with least.

    Args:
        work: The work of each sample, 0 or more.
        groups: How many groups there are, at most as many as samples.
    """
    dealt: list[list[int]] = [[] for _ in range(groups)]
    sums = [0.0] * groups
    for number, index in enumerate(sorted(range(len(work)), key=lambda i: (-work[i], i))):
        group = number if number < groups else min(range(groups), key=sums.__getitem__)
        dealt[group].append(index)
        sums[group] += work[index]
    return [sorted(group) for group in dealt]
