"""Held-out rows as questions to a model, with the answers that stand in the data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sailplan.data.mixture import entry_of, place
from sailplan.data.sample import Message, Sample
from sailplan.errors import DataError
from sailplan.evaluate.generate import Question

if TYPE_CHECKING:
    from sailplan.data.formats import Format
    from sailplan.data.images import ImageOpener
    from sailplan.data.sources import Rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A held-out row as a question."""

    place: str
    """Where a user finds the row."""
    question: Question
    """What the model is asked, images opened."""
    prompt: str
    """The question's own words, images as `<image>`."""
    answer: str
    """The answer in the data."""


def held_out_questions(
    rows: Rows, format: Format, opener: ImageOpener, indices: Iterable[int]
) -> list[Asked]:
    """Returns held-out rows as questions: all that stands before the last answer.

    Args:
        rows: The run's rows.
        format: How they become samples.
        opener: Opens their images.
        indices: Which of the held-out rows.

    Raises:
        DataError: A row is wrong, named by its number.
    """
    asked: list[Asked] = []
    held_out = rows.eval or []
    for index in indices:
        number = rows.numbers["eval"][index]
        entry, where = entry_of(rows.entries, number), place(rows.entries, number)
        try:
            sample = format.sample(held_out[index])
            asked.append(_asked(sample, opener, entry, where))
        except DataError as error:
            raise DataError(f"eval {where}: {error}") from error
    return asked


def _asked(sample: Sample, opener: ImageOpener, entry: int, where: str) -> Asked:
    if sample["segments"]:
        prompt = "".join(part["text"] for part in sample["segments"] if not part["trained"])
        answer = "".join(part["text"] for part in sample["segments"] if part["trained"])
        return Asked(place=where, question=Question(text=prompt), prompt=prompt, answer=answer)
    messages = sample["messages"]
    last = max(index for index, turn in enumerate(messages) if turn["role"] == "assistant")
    before = messages[:last]
    count = sum(part["type"] == "image" for turn in before for part in turn["content"])
    images = tuple(opener.open(reference, entry) for reference in sample["images"][:count])
    return Asked(
        place=where,
        question=Question(messages=before, images=images),
        prompt="\n".join(_text(turn) for turn in before),
        answer=_text(messages[last]),
    )


def _text(turn: Message) -> str:
    parts = (part["text"] if part["type"] == "text" else "<image>" for part in turn["content"])
    return "".join(parts)
