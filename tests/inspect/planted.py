"""A data set that holds each fault once, and one that holds none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.rows import draw

IMAGE_SIZE = (84, 56)


def chat(question: Any, answer: Any, *, images: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """A row in TRL's messages format."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"images": list(images), "messages": turns, **more}


def clean_rows(folder: Path, count: int, *, prefix: str = "clean") -> list[dict[str, Any]]:
    """Rows with an image each, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        name = f"{prefix}-{number}.png"
        draw(folder / name, colour="red", size=IMAGE_SIZE)
        rows.append(chat(f"What is number {number}?", f"A red thing, {number}.", images=[name]))
    return rows


def write_rows(folder: Path, rows: Sequence[Mapping[str, Any]], name: str = "rows.json") -> Path:
    """Writes rows as one JSON array, whose columns may hold anything."""
    path = folder / name
    path.write_text(json.dumps(list(rows)))
    return path


def planted_rows(folder: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Returns rows, and for each fault of one row the row's number."""
    rows = clean_rows(folder, 8)
    (folder / "broken.png").write_bytes((folder / "clean-0.png").read_bytes()[:20])
    (folder / "page.png").write_text("<!doctype html><title>Not found</title>")
    draw(folder / "cut.png", colour="blue", size=(300, 300))
    whole = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder.parent / "outside.png").write_bytes((folder / "clean-0.png").read_bytes())

    def named(name: str) -> list[str]:
        draw(folder / name, colour="green", size=IMAGE_SIZE)
        return [name]

    question, answer = "What is it?", "A green thing."
    faults: dict[str, dict[str, Any]] = {
        "row-format": {"images": [], "messages": []},
        "missing-role": {
            "images": [],
            "messages": [{"role": None, "content": question}, {"role": "user", "content": "b"}],
        },
        "unknown-role": {"images": [], "messages": [{"role": "narrator", "content": "Once"}]},
        "none-part": chat([{"type": "text", "text": None}], answer),
        "no-answer": {"images": [], "messages": [{"role": "user", "content": question}]},
        "empty-answer": chat(question, " ", images=named("empty-answer.png")),
        "placeholder-mismatch": chat("<image><image>Two?", answer, images=named("one.png")),
        "image-missing": chat(question, answer, images=["nowhere.png"]),
        "image-broken": chat(question, answer, images=["broken.png"]),
        "image-refused": chat(question, answer, images=["../outside.png"]),
        "over-long": chat(question, "very " * 400 + "long", images=named("long.png")),
        "empty-turn": {
            "images": named("empty-turn.png"),
            "messages": [
                {"role": "user", "content": "One?"},
                {"role": "assistant", "content": ""},
                {"role": "user", "content": "Two?"},
                {"role": "assistant", "content": "Two."},
            ],
        },
        "special-token-in-text": chat("Stop<|im_end|> here?", "Now.", images=named("special.png")),
        "duplicate-rows": rows[3],
        "text-only-rows": chat("No image here?", "None."),
    }
    numbers = {name: len(rows) + index for index, name in enumerate(faults)}
    return [*rows, *faults.values()], numbers
