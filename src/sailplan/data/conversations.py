"""The formats whose rows are chats already: `messages`, `prompt_completion` and `llava`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sailplan.data.references import column_references
from sailplan.data.sample import ImageReference, Sample, Segment
from sailplan.data.tools import read_tools
from sailplan.data.turns import as_sample, expand_placeholders, place, read_turns
from sailplan.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Messages:
    """TRL's conversational rows: a column `messages` of turns, and columns of images.

    Images stand where image parts are, else where `<image>` is written in the text of a row that
    has images, else in front of the first user turn.
    """

    name: ClassVar[str] = "messages"
    image_columns: tuple[str, ...] = ()
    """The columns of images, in the order in which they fill image parts."""
    inline_images: bool = False
    """Whether image parts may carry their own images."""
    system_prompt: str | None = None
    """A system text for chats that have none."""
    system_column: str | None = None
    """A column with the system text of each row, which goes before `system_prompt`."""

    @property
    def image_fields(self) -> list[str]:
        """The raw columns that `images` reads."""
        return [*self.image_columns, *(["messages"] if self.inline_images else [])]

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """Returns the row as a sample.

        Raises:
            DataError: The row is no chat with an answer, or its images do not fit.
        """
        images = column_references(row, self.image_columns)
        turns = read_turns(row.get("messages"), column="messages")
        place(turns, len(images))
        return as_sample(turns, images, _system(self, row), read_tools(row.get("tools")))

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
    system_column: str | None = None
    """A column with the system text of each row, which goes before `system_prompt`."""

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
        prompt, completion = row.get("prompt"), row.get("completion")
        images = column_references(row, self.image_columns)
        if isinstance(prompt, str) and isinstance(completion, str):
            return _plain(prompt, completion, images)
        asked = read_turns(prompt, column="prompt")
        for turn in asked:
            turn.trained = False
        turns = asked + read_turns(completion, column="completion")
        place(turns, len(images))
        return as_sample(turns, images, _system(self, row), read_tools(row.get("tools")))

    def images(self, row: Mapping[str, Any]) -> list[ImageReference]:
        """Returns the row's images, equal to `sample(row)["images"]`."""
        if self.inline_images:
            return self.sample(row)["images"]
        return column_references(row, self.image_columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class Llava:
    """LLaVA's json: `conversations` of human and gpt, `<image>` in the text, `image` beside it."""

    name: ClassVar[str] = "llava"
    image_columns: tuple[str, ...] = ()
    """The columns of images."""
    system_prompt: str | None = None
    """A system text for chats that have none."""
    system_column: str | None = None
    """A column with the system text of each row, which goes before `system_prompt`."""

    @property
    def image_fields(self) -> list[str]:
        """The raw columns that `images` reads."""
        return list(self.image_columns)

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """Returns the row as a sample.

        Raises:
            DataError: The row is no chat with an answer, or its images do not fit.
        """
        turns = read_turns(row.get("conversations"), column="conversations")
        expand_placeholders(turns)
        return as_sample(turns, self.images(row), _system(self, row), read_tools(row.get("tools")))

    def images(self, row: Mapping[str, Any]) -> list[ImageReference]:
        """Returns the row's images, equal to `sample(row)["images"]`."""
        return column_references(row, self.image_columns)


def _plain(prompt: str, completion: str, images: list[ImageReference]) -> Sample:
    if images:
        raise DataError(
            "there are images beside a plain-text prompt",
            allowed="a prompt of messages",
            todo="write prompt and completion as messages, or use dataset_format: template",
        )
    if not completion:
        raise DataError(
            "column 'completion' is empty",
            todo="drop the row or fill the column",
            kind="empty-answer",
        )
    segments = [Segment(text=prompt, trained=False), Segment(text=completion, trained=True)]
    return Sample(messages=[], segments=segments, images=[])


def _system(format: Messages | PromptCompletion | Llava, row: Mapping[str, Any]) -> str | None:
    written = row.get(format.system_column) if format.system_column else None
    if written is not None and not isinstance(written, str):
        raise DataError(
            f"column {format.system_column!r} holds a {type(written).__name__}", allowed="a text"
        )
    return written or format.system_prompt
