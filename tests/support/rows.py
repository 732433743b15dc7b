"""Small data sets of drawn images, as files that a user could have."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}


def draw(path: Path, *, colour: str, size: tuple[int, int]) -> None:
    """Draws a filled ellipse of the colour on white."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((4, 4, size[0] - 4, size[1] - 4), fill=COLOURS[colour])
    image.save(path)


def write_rows(folder: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Writes rows as `train.jsonl` of a folder, and returns that."""
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def chat_rows(folder: Path, count: int, *, seed: int = 0, images: bool = True) -> Path:
    """Writes `count` conversations in TRL's messages format, with answers of unequal length.

    Args:
        folder: Where `train.jsonl` and its images go; made where missing.
        count: Rows.
        seed: Fixes colours, sizes and answers.
        images: One image per row, or text alone.

    Returns:
        The jsonl file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        colour = chance.choice(list(COLOURS))
        row: dict[str, object] = {}
        if images:
            size = (chance.randrange(56, 140), chance.randrange(56, 140))
            draw(folder / f"{number}.png", colour=colour, size=size)
            row["images"] = [f"{number}.png"]
        question = "Which colour is this?" if images else f"Say the word {colour}."
        answer = " ".join([colour] * chance.randrange(1, 9))
        row["messages"] = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        rows.append(row)
    return write_rows(folder, rows)


def mixed_rows(folder: Path, count: int, *, seed: int = 0) -> Path:
    """Writes conversations with none to three images each, and answers of one to sixty words.

    Args:
        folder: Where `train.jsonl` and its images go; made where missing.
        count: Rows.
        seed: Fixes colours, sizes and answers.

    Returns:
        The jsonl file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        colours = [chance.choice(list(COLOURS)) for _ in range(number % 4)]
        names = [f"{number}_{index}.png" for index in range(len(colours))]
        for name, colour in zip(names, colours, strict=True):
            size = (chance.randrange(40, 160), chance.randrange(40, 160))
            draw(folder / name, colour=colour, size=size)
        answer = " ".join([*colours, *["and"] * int(chance.lognormvariate(2, 1)), "so on"])
        asked = [{"type": "image"} for _ in names]
        said = [{"type": "text", "text": answer[:300]}]
        question = [*asked, {"type": "text", "text": "Which colours are these?"}]
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": said},
        ]
        rows.append({"messages": messages, "images": names})
    return write_rows(folder, rows)
