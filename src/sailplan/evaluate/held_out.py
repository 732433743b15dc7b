"""Rows of the data as questions to a model, with the answers that stand in the data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xxhash

from sailplan.data.mixture import entry_of, place
from sailplan.data.sample import ImageReference, Message, Sample
from sailplan.errors import DataError
from sailplan.evaluate.generate import Question

if TYPE_CHECKING:
    from PIL import Image

    from sailplan.data.formats import Format
    from sailplan.data.images import ImageOpener
    from sailplan.data.sources import Rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A row as a question; its images are opened when it is asked."""

    place: str
    """Where a user finds the row."""
    prompt: str
    """The question's own words, images as `<image>`."""
    answer: str
    """The answer in the data."""
    messages: Sequence[Message] = ()
    """The turns before the answer, of a chat."""
    text: str = ""
    """In place of messages: the text before the answer."""
    references: tuple[ImageReference, ...] = ()
    """The images of the messages."""
    entry: int
    """The entry of the data that it is from."""
    opener: ImageOpener
    """Opens them."""

    @property
    def question(self) -> Question:
        """What the model is asked, images opened.

        Raises:
            DataError: An image cannot be opened; the row is named.
        """
        return Question(messages=self.messages, text=self.text, images=self.images())

    def images(self) -> tuple[Image.Image, ...]:
        """Opens the images, RGB.

        Raises:
            DataError: One cannot be opened; the row is named.
        """
        try:
            return tuple(self.opener.open(one, self.entry) for one in self.references)
        except DataError as error:
            raise DataError(f"{self.place}: {error}") from error

    def identity(self) -> str:
        """Returns what tells this question from others: a hash of its words and images.

        Raises:
            DataError: An image is missing.
        """
        try:
            images = [self.opener.identity(one, self.entry) for one in self.references]
        except DataError as error:
            raise DataError(f"{self.place}: {error}") from error
        parts = json.dumps([self.messages, self.text, images], default=str)
        return xxhash.xxh3_128_hexdigest(parts.encode(errors="surrogatepass"))


def held_out_questions(
    rows: Rows,
    format: Format,
    opener: ImageOpener,
    indices: Iterable[int],
    *,
    split: str = "eval",
) -> list[Asked]:
    """Returns rows as questions: all that stands before the last answer.

    Args:
        rows: The run's rows.
        format: How they become samples.
        opener: Opens their images.
        indices: Which rows of the split.
        split: `eval` or `train`, which must not be streamed.

    Raises:
        DataError: A row is wrong, named by its number.
    """
    raw: Any = (rows.train if split == "train" else rows.eval) or ()
    asked: list[Asked] = []
    for index in indices:
        number = rows.numbers[split][index]
        entry, where = entry_of(rows.entries, number), place(rows.entries, number)
        try:
            asked.append(_asked(format.sample(raw[index]), opener, entry, where))
        except DataError as error:
            raise DataError(f"{split} {where}: {error}") from error
    return asked


def _asked(sample: Sample, opener: ImageOpener, entry: int, where: str) -> Asked:
    if sample["segments"]:
        prompt = "".join(part["text"] for part in sample["segments"] if not part["trained"])
        answer = "".join(part["text"] for part in sample["segments"] if part["trained"])
        return Asked(
            place=where, prompt=prompt, answer=answer, text=prompt, entry=entry, opener=opener
        )
    messages = sample["messages"]
    answers = [index for index, turn in enumerate(messages) if turn["role"] == "assistant"]
    if not answers:
        raise DataError("it has no answer of an assistant")
    before = messages[: answers[-1]]
    count = sum(part["type"] == "image" for turn in before for part in turn["content"])
    return Asked(
        place=where,
        prompt="\n".join(_text(turn) for turn in before),
        answer=_text(messages[answers[-1]]),
        messages=before,
        references=tuple(sample["images"][:count]),
        entry=entry,
        opener=opener,
    )


def _text(turn: Message) -> str:
    parts = (part["text"] if part["type"] == "text" else "<image>" for part in turn["content"])
    return "".join(parts)
