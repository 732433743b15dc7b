"""What a row becomes, whatever its source: a `Sample`.

Pixels are never in a sample: an image is a reference that `sailplan.data.images` opens in the
collator's workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from typing_extensions import NotRequired


class ImageReference(TypedDict):
    """Where an image's bytes are: a path, or the encoded file itself (`datasets.Image` storage).

    At least one of the two is set. A `path` is as written in the data; `sailplan.data.images`
    resolves it under the image root.
    """

    path: str | None
    bytes: bytes | None


class Part(TypedDict, total=False):
    """One part of a message's content."""

    type: Literal["text", "image"]
    text: str


Role = Literal["system", "user", "assistant", "tool"]


class Message(TypedDict):
    """One turn. Content is always a list of parts, so that templates of every family agree.

    `trained: False` on an assistant turn keeps its words out of the loss (an answer that belongs
    to a prompt); every other assistant turn is trained. What a template knows besides goes along
    under its usual names: `tool_calls` and `reasoning_content` of an assistant, `name` and
    `tool_call_id` of a tool, and on the first message `tools`, which the assistant may call.
    """

    role: Role
    content: list[Part]
    trained: NotRequired[bool]
    tools: NotRequired[list[dict[str, Any]]]
    tool_calls: NotRequired[list[dict[str, Any]]]
    reasoning_content: NotRequired[str]
    name: NotRequired[str]
    tool_call_id: NotRequired[str]


class Segment(TypedDict):
    """A piece of plain text for models that are trained without a chat template."""

    text: str
    trained: bool


class Sample(TypedDict):
    """One training sample: a conversation, or plain text segments.

    Exactly one of `messages` and `segments` is non-empty. `images` are in the order of the image
    parts of `messages`, one each.
    """

    messages: list[Message]
    segments: list[Segment]
    images: list[ImageReference]
