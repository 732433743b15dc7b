"""Reads the turns of a chat, however they are written, and puts a row's images where they belong.

Turns come as `role`/`content` (TRL, OpenAI) or `from`/`value` (LLaVA, ShareGPT), as a list or as
JSON of one. Arrow fills keys that a row does not have with `None`, so `None` always means "not
there".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sailplan.data.references import PART_KEYS, from_base64, references
from sailplan.data.sample import ImageReference, Message, Part, Role, Sample
from sailplan.data.tools import read_calls
from sailplan.errors import DataError

IMAGE_PLACEHOLDER = "<image>"
"""Stands for an image inside text, as LLaVA's data writes it."""

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
_CALLS = ("function_call", "tool_call")
"""Roles of ShareGPT whose words are a call in JSON."""

_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")
"""Types of parts, of OpenAI's too."""

_KEPT = ("reasoning_content", "name", "tool_call_id")
"""What a turn says besides, for templates that know it."""


@dataclass(kw_only=True, slots=True)
class Turn:
    """One turn, whose image parts may still wait for their image."""

    role: Role
    """Who speaks."""
    parts: list[Part]
    """What is said."""
    images: list[ImageReference | None]
    """One for each image part, in order; `None` where a row's image column has to fill it."""
    plain: bool
    """Whether the content was written as a string."""
    trained: bool = True
    """Whether an assistant's words count in the loss."""
    extras: dict[str, Any] = field(default_factory=dict)
    """What goes into the message besides: tool calls, and what `_KEPT` names."""


def read_turns(raw: object, *, column: str) -> list[Turn]:
    """Reads a list of turns.

    Args:
        raw: The column's value.
        column: Its name, for errors.

    Raises:
        DataError: It is no list of turns, a role is unknown, or a part is of another kind.
    """
    if isinstance(raw, str) and raw.lstrip().startswith("["):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise DataError(f"column {column!r} is broken JSON: {error}") from None
    if not isinstance(raw, Sequence) or isinstance(raw, str | bytes) or not raw:
        what = f"holds a {type(raw).__name__}" if raw else "is empty"
        raise DataError(f"column {column!r} {what}", allowed="a list of turns, role and content")
    return [_read_turn(turn, f"turn {n} of {column!r}") for n, turn in enumerate(raw, start=1)]


def _read_turn(turn: object, where: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise DataError(
            f"{where} is a {type(turn).__name__}",
            allowed="role and content",
            kind="none-part" if turn is None else "",
        )
    written = turn.get("role") or turn.get("from")
    role = _ROLES.get(str(written))
    if role is None:
        raise DataError(
            f"{where} has the role {written!r}",
            allowed=", ".join(_ROLES),
            kind="unknown-role" if written else "missing-role",
        )
    content = turn.get("content")
    content = turn.get("value") if content is None else content
    extras = _extras(turn, role, where)
    if written in _CALLS:
        extras["tool_calls"] = read_calls(content, where)
        content = None
    if isinstance(content, str):
        parts = [Part(type="text", text=content)]
        return Turn(role=role, parts=parts, images=[], plain=True, extras=extras)
    read = Turn(role=role, parts=[], images=[], plain=False, extras=extras)
    if content is None and extras.get("tool_calls"):
        return read
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise DataError(f"{where} has no content", kind="none-part" if content is None else "")
    for part in content:
        _read_part(read, part, where)
    return read


def _extras(turn: Mapping[str, Any], role: Role, where: str) -> dict[str, Any]:
    extras = {key: turn[key] for key in _KEPT if isinstance(turn.get(key), str) and turn[key]}
    calls = read_calls(turn.get("tool_calls"), where)
    if calls and role != "assistant":
        raise DataError(f"{where} has tool_calls", allowed="in the assistant's turns")
    return {**extras, "tool_calls": calls} if calls else extras


def _read_part(turn: Turn, part: object, where: str) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if isinstance(part, Mapping) and kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        turn.parts.append(Part(type="text", text=part["text"]))
    elif isinstance(part, str) and kind == "str":
        turn.parts.append(Part(type="text", text=part))
    elif isinstance(part, Mapping) and kind in _IMAGE_PARTS:
        found = references([part.get(key) for key in PART_KEYS if key != "base64"])
        if part.get("base64"):
            found.append(from_base64(str(part["base64"])))
        if len(found) > 1:
            raise DataError(f"an image part in {where} carries {len(found)} images", allowed="one")
        turn.parts.append(Part(type="image"))
        turn.images.append(found[0] if found else None)
    else:
        raise DataError(
            f"{where} has a part of type {kind!r}",
            allowed=", ".join((*_TEXT_PARTS, *_IMAGE_PARTS)),
            kind="none-part" if part is None or kind in (None, *_TEXT_PARTS) else "",
        )


def place(turns: Sequence[Turn], count: int) -> None:
    """Makes room for a row's images in turns that have no image parts.

    `<image>` in the text is such a place; it counts only in rows with images, as in a text-only row
    it is what somebody wrote about. Otherwise the images stand in front of the first user turn that
    was written as a string, which is the rule of TRL's `prepare_multimodal_messages`.
    """
    if count == 0 or any(turn.images for turn in turns):
        return
    expand_placeholders(turns)
    if any(turn.images for turn in turns):
        return
    for turn in turns:
        if turn.role == "user" and turn.plain:
            turn.parts = [Part(type="image") for _ in range(count)] + turn.parts
            turn.images = [None] * count
            return


def expand_placeholders(turns: Iterable[Turn]) -> None:
    """Turns each `<image>` in turns written as strings into an image part, in place."""
    for turn in turns:
        if turn.plain:
            turn.parts = _split(turn.parts[0]["text"])
            turn.images = [None for part in turn.parts if part["type"] == "image"]


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


def as_sample(
    turns: Sequence[Turn],
    images: Sequence[ImageReference],
    system_prompt: str | None,
    tools: list[dict[str, Any]] | None = None,
) -> Sample:
    """Returns the turns as a sample, each waiting image part with its image.

    Args:
        turns: The chat.
        images: The images of the row's image columns, in order.
        system_prompt: A system text, for a chat that has none.
        tools: What the assistant may call.

    Raises:
        DataError: There are more image parts than images, or the reverse, or no assistant turn.
    """
    slots = [image for turn in turns for image in turn.images]
    waiting = slots.count(None)
    if waiting != len(images):
        raise DataError(
            f"{_number(waiting, 'image placeholder')} for {_number(len(images), 'image')}",
            allowed="one placeholder for each image",
            kind="placeholder-mismatch",
        )
    if not any(turn.role == "assistant" and turn.trained for turn in turns):
        raise DataError(
            "there is no assistant turn to train on",
            todo="add an answer, or drop it",
            kind="no-answer",
        )
    messages: list[Message] = []
    for turn in turns:
        message = Message(role=turn.role, content=turn.parts)
        message.update(turn.extras)  # type: ignore[typeddict-item]  # of the message's own keys
        messages.append(message)
        if turn.role == "assistant" and not turn.trained:
            messages[-1]["trained"] = False
    if system_prompt is not None and turns[0].role != "system":
        system = Message(role="system", content=[Part(type="text", text=system_prompt)])
        messages.insert(0, system)
    if tools:
        messages[0]["tools"] = tools
    supply = iter(images)
    placed = [next(supply) if slot is None else slot for slot in slots]
    return Sample(messages=messages, segments=[], images=placed)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
