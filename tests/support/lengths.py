"""How many tokens rows have, by the processor's own way from messages and images to ids."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from transformers import AutoProcessor


def token_counts(model: Path, data: Path) -> list[int]:
    """Returns the tokens of each row that `chat_rows` has written, image tokens among them."""
    processor = AutoProcessor.from_pretrained(model)
    found = []
    for row in map(json.loads, data.read_text().splitlines()):
        images = [Image.open(data.parent / name).convert("RGB") for name in row.get("images", ())]
        question, answer = row["messages"]
        parts = [{"type": "image"} for _ in images] + [
            {"type": "text", "text": question["content"]}
        ]
        content = parts if images else question["content"]
        text = processor.apply_chat_template([question | {"content": content}, answer])
        if images:
            ids = processor(text=[text], images=[images])["input_ids"][0]
        else:
            ids = processor(text, add_special_tokens=False)["input_ids"]
        found.append(len(ids))
    return found
