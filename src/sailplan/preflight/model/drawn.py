"""Conversations and pictures for a model that is looked at: drawn, of many sizes, with answers."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

from sailplan.data.sample import Message, Sample

SIZES = ((224, 224), (64, 48), (640, 480), (300, 1000), (1000, 300), (33, 57), (1280, 720))
"""Width and height of the pictures, in pixels."""

_TALKS = (
    (("What is in this picture?", "A red square on a white ground."),),
    (("Is the square large?", "Yes, it is."), ("And its colour?", "Red, as far as I can see.")),
    (("Describe it in a word.", "Square."),),
    (("Why?", "Because it was drawn so, with four equal sides.\nNothing else is there."),),
)


def picture(size: tuple[int, int]) -> Image.Image:
    """Returns a picture of that width and height."""
    image = Image.new("RGB", size, "white")
    width, height = size
    ImageDraw.Draw(image).rectangle(
        (width // 4, height // 4, width // 2 + 1, height // 2 + 1), "red"
    )
    return image


def talks(*, with_image: bool) -> list[list[Message]]:
    """Returns the conversations, each with an image in its first turn, or with none."""
    found: list[list[Message]] = []
    for talk in _TALKS:
        messages: list[Message] = []
        for question, answer in talk:
            first = with_image and not messages
            image = [{"type": "image"}] if first else []
            messages.append(
                {"role": "user", "content": [*image, {"type": "text", "text": question}]}  # type: ignore[list-item]
            )
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        found.append(messages)
    return found


def answers(messages: list[Message]) -> list[str]:
    """Returns what the assistant says in a conversation."""
    return [
        part["text"]
        for message in messages
        if message["role"] == "assistant"
        for part in message["content"]
    ]


def sample(messages: list[Message]) -> Sample:
    """Returns a conversation as a sample; its images are never opened."""
    count = sum(part["type"] == "image" for message in messages for part in message["content"])
    return Sample(messages=messages, segments=[], images=[{"path": "drawn", "bytes": None}] * count)


def write_rows(folder: Path, *, with_image: bool) -> Path:
    """Writes the conversations with their pictures as a data set, and returns its file."""
    folder.mkdir(parents=True)
    rows = []
    for number, messages in enumerate(talks(with_image=with_image)):
        row: dict[str, object] = {"messages": messages}
        if with_image:
            name = f"{number}.png"
            picture(SIZES[number]).save(folder / name)
            row["images"] = [name]
        rows.append(row)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
