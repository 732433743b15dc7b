"""The formats whose rows are chats already: `messages`, `prompt_completion` and `llava`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sailplan.data.references import column_references
from sailplan.data.sample import ImageReference, Sample, Segment
from sailplan.data.turns import (
    Turns,
    count_placeholders,
    fill,
    put_in_front,
    read_turns,
    refuse_tools,
)
from sailplan.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Messages:
    """TRL's conversational rows: a column of turns, and columns of images.

    Images stand where image parts are, else where `<image>` is written in the text of a row that
    has images, else in front of the first user turn.
    """

    name: ClassVar[str] = "messages"
    column: str = "messages"
    """The column of turns."""
    image_columns: tuple[str, ...] = ()
    """The columns of images, in the order in which they fill image parts."""
    inline_images: bool = False
    """Whether image parts may carry their own images."""
    system_prompt: str | None = None
    """A system text for chats that have none."""

    @property
    def image_fields(self) -> list[str]:
        """The raw columns that `images` reads."""
        return [*self.image_columns, *([self.column] if self.inline_images else [])]

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """Returns the row as a sample.

        Raises:
            DataError: The row is no chat with an answer, or its images do not fit.
        """
        refuse_tools(row)
        images = column_references(row, self.image_columns)
        turns = _place(read_turns(row.get(self.column), column=self.column), images)
        if turns is None:
            turns = read_turns(row.get(self.column), column=self.column, placeholders=True)
        return fill(turns, images, self.system_prompt)

    def images(self, row: Mapping[str, Any]) -> list[ImageReference]:
        """Returns the row's images, equal to `sample(row)["images"]`."""
        if self.inline_images:
            return self.sample(row)["images"]
        return column_references(row, self.image_columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptCompletion:
    """TRL's `prompt` and `completion`, both chats or both plain text; the completion is trained."""

    name: ClassVar[str] = "prompt_completion"
    image_columns: tuple[str, ...] = ()
    """The columns of images."""
    inline_images: bool = False
    """Whether image parts may carry their own images."""
    system_prompt: str | None = None
    """A system text for chats that have none."""

    @property
    def image_fields(self) -> list[str]:
        """The raw columns that `images` reads."""
        inline = ["prompt", "completion"] if self.inline_images else []
        return [*self.image_columns, *inline]

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """Returns the row as a sample, as segments where it is plain text.

        Raises:
            DataError: The two columns are of different kinds or empty, or images do not fit.
        """
        refuse_tools(row)
        prompt, completion = row.get("prompt"), row.get("completion")
        images = column_references(row, self.image_columns)
        if isinstance(prompt, str) and isinstance(completion, str):
            if images:
                raise DataError(
                    "images beside a plain-text prompt",
                    allowed="a prompt of messages",
                    todo="write prompt and completion as messages, or use dataset_format: template",
                )
            if not completion:
                raise DataError("the completion is empty")
            segments = [
                Segment(text=prompt, trained=False),
                Segment(text=completion, trained=True),
            ]
            return Sample(messages=[], segments=segments, images=[])
        turns = self._turns(prompt, completion, images)
        return fill(turns, images, self.system_prompt)

    def images(self, row: Mapping[str, Any]) -> list[ImageReference]:
        """Returns the row's images, equal to `sample(row)["images"]`."""
        if self.inline_images:
            return self.sample(row)["images"]
        return column_references(row, self.image_columns)

    def _turns(self, prompt: object, completion: object, images: list[ImageReference]) -> Turns:
        turns = _joined(prompt, completion, placeholders=False)
        return _place(turns, images) or _joined(prompt, completion, placeholders=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Llava:
    """LLaVA's json: `conversations` of human and gpt, `<image>` in the text, `image` beside it."""

    name: ClassVar[str] = "llava"
    column: str = "conversations"
    """The column of turns."""
    image_columns: tuple[str, ...] = ()
    """The columns of images."""
    system_prompt: str | None = None
    """A system text for chats that have none."""

    @property
    def image_fields(self) -> list[str]:
        """The raw columns that `images` reads."""
        return list(self.image_columns)

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """Returns the row as a sample.

        Raises:
            DataError: The row is no chat with an answer, or its images do not fit.
        """
        turns = read_turns(row.get(self.column), column=self.column, placeholders=True)
        return fill(turns, self.images(row), self.system_prompt)

    def images(self, row: Mapping[str, Any]) -> list[ImageReference]:
        """Returns the row's images, equal to `sample(row)["images"]`."""
        return column_references(row, self.image_columns)


def _joined(prompt: object, completion: object, *, placeholders: bool) -> Turns:
    first = read_turns(prompt, column="prompt", placeholders=placeholders)
    last = read_turns(completion, column="completion", placeholders=placeholders)
    if not any(message["role"] == "assistant" for message in last.messages):
        raise DataError("the completion has no assistant turn")
    for message in first.messages:
        if message["role"] == "assistant":
            message["trained"] = False
    return Turns(
        messages=first.messages + last.messages,
        slots=first.slots + last.slots,
        plain=first.plain + last.plain,
    )


def _place(turns: Turns, images: list[ImageReference]) -> Turns | None:
    """Returns the turns with image parts for a row's images, or None: its text has placeholders.

    A chat with image parts is taken as it is. `<image>` counts only where the row has images: in a
    text-only row it is what somebody wrote about.
    """
    if not images or turns.slots:
        return turns
    if count_placeholders(turns):
        return None
    put_in_front(turns, len(images))
    return turns
