"""Rows that come twice, and held-out rows that are trained on, by hashes of what they hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sailplan.inspect.findings import Problem, Tally
from sailplan.inspect.survey import Survey

Place = Callable[[int], str]
"""Says where a user finds the row of a number."""


def find_duplicates(survey: Survey, tally: Tally, place: Place) -> None:
    """Adds every row that repeats an earlier one of its split."""
    first, repeats = _first_of_equal(survey.content)
    numbers = survey.split.numbers
    for index in repeats:
        original = place(numbers[first[index]])
        problem = Problem(name="duplicate-rows", message=f"is the same as {original}")
        tally.add(survey.split.name, numbers[index], problem)


def find_leaks(train: Survey, held_out: Survey, tally: Tally, place: Place) -> None:
    """Adds every held-out row whose whole, question or image is trained on."""
    same = _partners(held_out.content, train.content)
    asked = _partners(held_out.question, train.question)
    shown = _partners(held_out.images, train.images)
    numbers = held_out.split.numbers

    def add(index: int, name: str, what: str, other: int) -> None:
        message = f"{what} train {place(train.split.numbers[other])}"
        tally.add(held_out.split.name, numbers[index], Problem(name=name, message=message))

    told: set[int] = set()
    for index, other in same.items():
        add(index, "held-out-leak", "is the same as", other)
        told.add(index)
    for index, other in asked.items():
        if index not in told and held_out.num_images[index] + train.num_images[other] > 0:
            add(index, "held-out-question", "asks the same of the same image as", other)
            told.add(index)
    for index, other in shown.items():
        row = int(held_out.image_rows[index])
        if row not in told:
            add(row, "held-out-image", "has an image of", int(train.image_rows[other]))
            told.add(row)


def _first_of_equal(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], list[int]]:
    """Returns for each hash the index of its first equal, and the indices of all later ones."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    firsts = first[inverse]
    repeats = np.flatnonzero((firsts != np.arange(len(hashes))) & (hashes != 0))
    return firsts, [int(index) for index in repeats]


def _partners(wanted: NDArray[np.uint64], among: NDArray[np.uint64]) -> dict[int, int]:
    """Returns for each index of `wanted` that has an equal in `among` the first of these."""
    values, first = np.unique(among, return_index=True)
    if not len(values):
        return {}
    at = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    hits = np.flatnonzero((values[at] == wanted) & (wanted != 0))
    return {int(index): int(first[at[index]]) for index in hits}
