"""Has a model answer rows in batches of like length, each batch the same however it comes about.

Which rows share a batch, and from which seed their words are drawn, depends on the rows alone: not
on the number of ranks, nor on what was answered before a kill. So the answers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import xxhash

from sailplan.errors import HardwareError
from sailplan.evaluate.comparison import Answer
from sailplan.evaluate.generate import Sampling, generate

if TYPE_CHECKING:
    from sailplan.evaluate.held_out import Asked
    from sailplan.evaluate.speaker import Speaker


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A row that is to be answered."""

    key: str
    """What it is asked for; see `journal.key_of`."""
    asked: Asked
    num_tokens: int
    """The length of question and answer in the data, by which rows are sorted."""


def batches(rows: Sequence[Waiting], batch_size: int) -> list[list[Waiting]]:
    """Cuts rows into batches of like length, the longest first: what has no room fails at once."""
    ordered = sorted(rows, key=lambda row: (-row.num_tokens, row.key))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def answers(
    speaker: Speaker, parts: Sequence[Sequence[Waiting]], sampling: Sampling
) -> Iterator[Mapping[str, Answer]]:
    """Yields the answers to each batch, by their keys.

    Args:
        speaker: Who is asked.
        parts: The batches.
        sampling: How tokens are chosen; each batch has a seed of its own, made from this one.

    Raises:
        DataError: An image cannot be opened.
        HardwareError: Not even one row has room on the GPU.
    """
    for part in parts:
        yield _answered(speaker, part, sampling)


def _answered(speaker: Speaker, part: Sequence[Waiting], sampling: Sampling) -> dict[str, Answer]:
    import torch

    keys = [row.key for row in part]
    seed = xxhash.xxh3_64_intdigest("".join([str(sampling.seed), *keys]).encode()) >> 1
    try:
        said = generate(
            speaker,
            [row.asked.question for row in part],
            replace(sampling, seed=seed),
            batch_size=len(part),
        )
        return dict(zip(keys, said, strict=True))
    except torch.OutOfMemoryError as error:
        if len(part) == 1:
            raise HardwareError(
                f"{part[0].asked.place}: the GPU has no memory to answer one row",
                todo="lower generation.max_new_tokens or max_pixels, or --load_in_4bit true",
            ) from error
    torch.cuda.empty_cache()
    half = len(part) // 2
    return {
        **_answered(speaker, part[:half], sampling),
        **_answered(speaker, part[half:], sampling),
    }
