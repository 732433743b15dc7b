"""Encodes a sample of a run's rows as training does; reads sizes of images from their headers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sailplan.data.encode import Encoder
from sailplan.data.formats import Format
from sailplan.data.images import ImageOpener
from sailplan.data.media import Size
from sailplan.data.mixture import entry_of
from sailplan.data.sources import Rows
from sailplan.data.work import patches_per_token
from sailplan.errors import DataError
from sailplan.plan.facts.data import DataFacts

if TYPE_CHECKING:
    from sailplan.run.config import Run


@dataclass(kw_only=True, slots=True)
class _Tally:
    """What the rows of a sample come to."""

    lengths: list[int] = field(default_factory=list)
    image_tokens: list[int] = field(default_factory=list)
    largest_image_tokens: int = 0
    patches_per_token: float = 1.0
    trained: int = 0
    images: int = 0
    """The most that a row has."""
    largest: tuple[int, int] = (0, 0)
    """Width and height of the largest image."""
    broken: list[str] = field(default_factory=list)

    def add(self, length: int, of_images: int, trained: float, sizes: list[Size]) -> None:
        self.lengths.append(length)
        self.image_tokens.append(of_images)
        if sizes:
            self.largest_image_tokens = max(self.largest_image_tokens, -(-of_images // len(sizes)))
        self.trained += int(trained)
        self.images = max(self.images, len(sizes))
        self.largest = max([self.largest, *sizes], key=lambda size: size[0] * size[1])

    def facts(self, num_rows: int, sampled: int) -> DataFacts:
        if not self.lengths:
            raise DataError(f"no sampled row can be read; the first: {self.broken[0]}")
        notes: tuple[str, ...] = ()
        if self.broken:
            count = f"{len(self.broken)} of {sampled} sampled rows cannot be read"
            notes = (f"{count}; the first: {self.broken[0]}",)
        return DataFacts(
            rows=num_rows,
            lengths=tuple(self.lengths),
            image_tokens=tuple(self.image_tokens),
            largest_image_tokens=self.largest_image_tokens,
            patches_per_token=self.patches_per_token,
            trained_share=min(1.0, max(0.01, self.trained / sum(self.lengths))),
            images_per_row=self.images,
            image_height=self.largest[1],
            image_width=self.largest[0],
            sampled=len(self.lengths),
            notes=notes,
        )


def encoded(run: Run, rows: Rows, format: Format, opener: ImageOpener, most: int) -> DataFacts:
    """Measures a sample with the run's own encoder.

    Raises:
        ModelError: There is no processor.
        RunFileError: The processor refuses the run's settings.
        DataError: No sampled row can be read.
    """
    from sailplan.data.default_template import complete_template, is_chat
    from sailplan.model.families import family_of
    from sailplan.model.processor import load_processor_and_tokens
    from sailplan.model.source import load_config
    from sailplan.model.vocabulary import grown

    processor, added_ids = load_processor_and_tokens(run)
    family = grown(family_of(load_config(run)), added_ids)
    complete_template(processor, family, chat=is_chat(format, rows))
    encoder = Encoder.of(run, processor, family)
    tally, num_rows = _Tally(), _count(rows)
    if family.is_vision:
        tally.patches_per_token = patches_per_token(processor, family)
    indices = _spread(num_rows, most)
    for number, row, entry in _sample(rows, indices):
        try:
            sample = format.sample(row)
            sizes = [opener.size(reference, entry) for reference in sample["images"]]
            found = encoder.encode(sample, sizes)
        except DataError as error:
            tally.broken.append(f"row {number}: {error}")
            continue
        trained = sum(label >= 0 for label in found.labels)
        tally.add(len(found.input_ids), found.image_tokens, trained, sizes)
    return tally.facts(num_rows, len(indices))


def characters(
    rows: Rows,
    format: Format,
    opener: ImageOpener,
    most: int,
    image_tokens: Callable[[int, int], int],
    per_token: float,
) -> DataFacts:
    """Guesses lengths by the characters of a sample, where there is no tokenizer.

    Args:
        rows: The rows.
        format: How they become samples.
        opener: Opens their images.
        most: Rows that are read.
        image_tokens: Height and width to the tokens of an image.
        per_token: Characters of a token.

    Raises:
        DataError: No sampled row can be read.
    """
    tally, num_rows = _Tally(), _count(rows)
    indices = _spread(num_rows, most)
    known: dict[tuple[int, int], int] = {}
    for number, row, entry in _sample(rows, indices):
        try:
            sample = format.sample(row)
            sizes = [opener.size(reference, entry) for reference in sample["images"]]
        except DataError as error:
            tally.broken.append(f"row {number}: {error}")
            continue
        largest = max(sizes, key=lambda size: size[0] * size[1], default=None)
        if largest and not known:
            known[largest] = image_tokens(largest[1], largest[0])
        tokens = sum(_scaled(known, size) for size in sizes)
        text = sum(len(part) for part in _texts(sample))
        length = int(text / per_token) + tokens + 16
        tally.add(length, tokens, text / per_token / 2, sizes)
    return tally.facts(num_rows, len(indices))


def _scaled(known: dict[tuple[int, int], int], size: tuple[int, int]) -> int:
    """Returns an image's tokens by its area, from those of one image."""
    (reference, tokens), *_ = known.items()
    return round(tokens * size[0] * size[1] / (reference[0] * reference[1]))


def _texts(value: Any) -> Iterator[str]:
    """Yields all texts within a sample."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("images", "type", "role"):
                yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _count(rows: Rows) -> int:
    return len(rows.numbers["train"])


def _spread(count: int, most: int) -> list[int]:
    """Returns the indices of a sample that is spread over all rows."""
    return sorted({int(index) for index in np.linspace(0, count - 1, min(count, most))})


def _sample(rows: Rows, indices: list[int]) -> Iterator[tuple[int, Any, int]]:
    """Yields number, row and entry of the sampled rows."""
    train: Any = rows.train
    numbers = rows.numbers["train"]
    for index in indices:
        number = numbers[index]
        yield number, train[index], entry_of(rows.entries, number)
