"""Reads the turns of a chat, however they are written, and puts a row's images where they belong.

Turns come as `role`/`content` (TRL, OpenAI) or `from`/`value` (LLaVA, ShareGPT). Arrow fills keys
that a row does not have with `None`, so `None` always means "not there".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sailplan.data.references import PART_KEYS, references
from sailplan.data.sample import ImageReference, Message, Part, Role, Sample
from sailplan.errors import DataError

IMAGE_PLACEHOLDER = "<image>"
"""Stands for an image inside text, as LLaVA's data writes it."""

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
}


@dataclass(kw_only=True, slots=True)
class Turns:
    """A chat whose image parts may still wait for their image."""

    messages: list[Message] = field(default_factory=list)
    slots: list[ImageReference | None] = field(default_factory=list)
    """One for each image part, in order; `None` where a row's image column has to fill it."""
    plain: list[bool] = field(default_factory=list)
    """For each message, whether its content was written as a string."""


def read_turns(raw: object, *, column: str, placeholders: bool = False) -> Turns:
    """Reads a list of turns.

    Args:
        raw: The column's value.
        column: Its name, for errors.
        placeholders: Whether `<image>` in the text stands for an image.

    Raises:
        DataError: It is no list of turns, a role is unknown, or a part is of another kind.
    """
    if not isinstance(raw, Sequence) or isinstance(raw, str | bytes) or not raw:
        what = "is empty" if not raw else f"holds a {type(raw).__name__}"
        raise DataError(f"column {column!r} {what}", allowed="a list of turns, role and content")
    turns = Turns()
    for number, turn in enumerate(raw, start=1):
        _read_turn(turns, turn, f"turn {number} of {column!r}", placeholders)
    return turns


def _read_turn(turns: Turns, turn: object, where: str, placeholders: bool) -> None:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where} is a {type(turn).__name__}", allowed="role and content")
    written = turn.get("role") or turn.get("from")
    role = _ROLES.get(str(written))
    if role is None:
        raise DataError(f"{where} has the role {written!r}", allowed=", ".join(_ROLES))
    if turn.get("tool_calls"):
        raise DataError(f"{where} has tool_calls", allowed="turns of text and images")
    content = turn.get("content")
    content = turn.get("value") if content is None else content
    plain = isinstance(content, str)
    if isinstance(content, str):
        parts = _split(content) if placeholders else [Part(type="text", text=content)]
        turns.slots += [None for part in parts if part["type"] == "image"]
    elif isinstance(content, Sequence):
        parts = [_read_part(turns, part, where) for part in content]
    else:
        raise DataError(f"{where} has no content")
    turns.messages.append(Message(role=role, content=parts))
    turns.plain.append(plain)


def _read_part(turns: Turns, part: object, where: str) -> Part:
    if isinstance(part, str):
        return Part(type="text", text=part)
    if isinstance(part, Mapping):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            return Part(type="text", text=part["text"])
        if part.get("type") == "image":
            values = [part[key] for key in PART_KEYS if part.get(key) is not None]
            found = references(values)
            if len(found) > 1:
                raise DataError(f"an image part in {where} carries {len(found)} images")
            turns.slots.append(found[0] if found else None)
            return Part(type="image")
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise DataError(f"{where} has a part of type {kind!r}", allowed="text, image")


def _split(text: str) -> list[Part]:
    """Cuts text at its placeholders; the one line break that sets a placeholder off goes too."""
    pieces = text.split(IMAGE_PLACEHOLDER)
    parts: list[Part] = []
    for index, piece in enumerate(pieces):
        if index > 0:
            parts.append(Part(type="image"))
            piece = piece.removeprefix("\n")
        if index < len(pieces) - 1:
            piece = piece.removesuffix("\n")
        if piece or len(pieces) == 1:
            parts.append(Part(type="text", text=piece))
    return parts


def count_placeholders(turns: Turns) -> int:
    """Returns how often `<image>` stands in the plain text of turns that the model does not say."""
    return sum(
        part["text"].count(IMAGE_PLACEHOLDER)
        for message, plain in zip(turns.messages, turns.plain, strict=True)
        if plain and message["role"] != "assistant"
        for part in message["content"]
        if part["type"] == "text"
    )


def put_in_front(turns: Turns, count: int) -> None:
    """Puts `count` image parts before the first user turn that was written as a string.

    The rule of TRL's `prepare_multimodal_messages`; without such a turn nothing is put anywhere.
    """
    for message, plain in zip(turns.messages, turns.plain, strict=True):
        if message["role"] == "user" and plain:
            message["content"] = [Part(type="image") for _ in range(count)] + message["content"]
            turns.slots[:0] = [None] * count
            return


def fill(turns: Turns, images: Sequence[ImageReference], system_prompt: str | None) -> Sample:
    """Gives each waiting image part its image, and the chat its system text.

    Raises:
        DataError: There are more image parts than images, or the reverse, or no assistant turn.
    """
    waiting = turns.slots.count(None)
    if waiting != len(images):
        raise DataError(
            f"{_number(waiting, 'image placeholder')} for {_number(len(images), 'image')}",
            allowed="one placeholder for each image",
        )
    if not any(message["role"] == "assistant" for message in turns.messages):
        raise DataError("the chat has no assistant turn", todo="drop the row or add an answer")
    messages = turns.messages
    if system_prompt is not None and messages[0]["role"] != "system":
        messages = [
            Message(role="system", content=[Part(type="text", text=system_prompt)]),
            *messages,
        ]
    supply = iter(images)
    placed = [next(supply) if slot is None else slot for slot in turns.slots]
    return Sample(messages=messages, segments=[], images=placed)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def refuse_tools(row: Mapping[str, Any]) -> None:
    """Raises a DataError where a row brings tools, which would silently be left out."""
    if row.get("tools"):
        raise DataError("the row brings tools", allowed="chats of text and images")
