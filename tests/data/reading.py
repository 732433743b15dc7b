"""Conversations in short, and tokens with their labels as a reader sees them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from sailplan.data.labels import UNTRAINED
from sailplan.data.sample import Message, Part, Sample

IMAGE = Part(type="image")


def turn(role: Any, *content: str | Part, trained: bool = True) -> Message:
    """Returns a message; strings are its text parts."""
    parts = [Part(type="text", text=c) if isinstance(c, str) else c for c in content]
    message = Message(role=role, content=parts)
    return message if trained else Message(role=role, content=parts, trained=False)


def chat(*messages: Message) -> Sample:
    """Returns a sample of messages; its images stay unread."""
    count = sum(part["type"] == "image" for m in messages for part in m["content"])
    images: Any = [{"path": f"{index}.png", "bytes": None} for index in range(count)]
    return Sample(messages=list(messages), segments=[], images=images)


def pieces(tokenizer: Any, ids: Sequence[int], labels: Sequence[int]) -> list[str]:
    """Returns the tokens, joined where they are alike: `-…` is not trained, `+…` is.

    Repeated image tokens are written as `<image>×16`.
    """
    for token, label in zip(ids, labels, strict=True):
        assert label in (UNTRAINED, token)
    runs = itertools.groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != UNTRAINED)
    return [
        ("+" if trained else "-") + _short(tokenizer.decode([token for token, _ in run]))
        for trained, run in runs
    ]


def _short(text: str) -> str:
    special = r"(<\|image_pad\|>|<image>|\[IMG\])"
    return re.sub(special + r"\1+", lambda m: f"{m[1]}×{len(m[0]) // len(m[1])}", text)
