"""The `template` format: the user's own prompt around the columns of a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sailplan.data.prompts import Piece, as_text
from sailplan.data.references import column_references, references
from sailplan.data.sample import ImageReference, Message, Part, Sample
from sailplan.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """One user turn and one answer, with a system text where the run file has one.

    An image stands where the prompt names its column, else in front of the prompt. A row may
    leave image columns empty.
    """

    name: ClassVar[str] = "template"
    user: tuple[Piece, ...]
    """The user's text."""
    system: tuple[Piece, ...] = ()
    """The system text; empty for none."""
    answer_column: str
    """The column with the assistant's words."""
    image_columns: tuple[str, ...] = ()
    """The columns of images."""
    class_names: Mapping[str, tuple[str, ...]]
    """The names of the classes, for columns of class labels."""

    @property
    def image_fields(self) -> list[str]:
        """The raw columns that `images` reads."""
        return list(self.image_columns)

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """Returns the row as a sample.

        Raises:
            DataError: A column that is used is empty, or holds neither text nor a number.
        """
        messages: list[Message] = []
        if self.system:
            messages.append(Message(role="system", content=self._parts(self.system, row)))
        front = [Part(type="image") for _ in column_references(row, self._unnamed_images())]
        messages.append(Message(role="user", content=front + self._parts(self.user, row)))
        answer = as_text(row, self.answer_column, self.class_names, kind="empty-answer")
        if not answer:
            raise DataError(
                f"the answer in column {self.answer_column!r} is empty", kind="empty-answer"
            )
        messages.append(Message(role="assistant", content=[Part(type="text", text=answer)]))
        return Sample(messages=messages, segments=[], images=self.images(row))

    def images(self, row: Mapping[str, Any]) -> list[ImageReference]:
        """Returns the row's images, equal to `sample(row)["images"]`."""
        named = [piece.text for piece in self.user if self._is_image(piece)]
        return column_references(row, [*self._unnamed_images(), *named])

    def _unnamed_images(self) -> list[str]:
        named = {piece.text for piece in self.user if piece.is_field}
        return [column for column in self.image_columns if column not in named]

    def _is_image(self, piece: Piece) -> bool:
        return piece.is_field and piece.text in self.image_columns

    def _parts(self, pieces: tuple[Piece, ...], row: Mapping[str, Any]) -> list[Part]:
        parts: list[Part] = []
        text = ""
        for piece in pieces:
            if self._is_image(piece):
                images = [Part(type="image") for _ in references(row.get(piece.text))]
                if images and text:
                    parts.append(Part(type="text", text=text))
                    text = ""
                parts += images
            elif piece.is_field:
                text += as_text(row, piece.text, self.class_names)
            else:
                text += piece.text
        if text:
            parts.append(Part(type="text", text=text))
        return parts
