"""Tiny models that attend by segment, with rows of their own and what makes batches of them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from sailplan.data.collator import Collator
from sailplan.data.conversations import Messages
from sailplan.data.encode import Encoder
from sailplan.data.images import ImageOpener
from sailplan.data.labels import UNTRAINED
from sailplan.model.families import Family, family_of
from sailplan.model.packed_attention import attend_by_segment
from sailplan.model.positions import Positions

FORMAT = Messages(image_columns=("images",))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A tiny model that attends by segment, and what makes its batches."""

    model: Any
    family: Family
    encoder: Encoder

    @classmethod
    def load(cls, folder: Path) -> Setting:
        family = family_of(AutoConfig.from_pretrained(folder))
        processor: Any = AutoProcessor if family.is_vision else AutoTokenizer
        auto = AutoModelForImageTextToText if family.is_vision else AutoModelForCausalLM
        model = auto.from_pretrained(folder, dtype=torch.float32)
        attend_by_segment(model)
        return cls(
            model=model,
            family=family,
            encoder=Encoder(processor.from_pretrained(folder), family),
        )

    def collate(self, *, packs: bool, dummy: bool = False, **options: Any) -> Collator:
        positions = Positions(self.model.config) if packs else None
        opener = ImageOpener(root=None)
        return Collator(
            self.encoder.processor,
            self.family,
            FORMAT,
            opener,
            positions=positions,
            dummy_image=dummy,
            **options,
        )

    def row(self, answer: str, *sizes: tuple[int, int], seed: int = 0) -> dict[str, Any]:
        sizes = sizes if self.family.is_vision else ()
        images = [{"path": None, "bytes": png(size, seed + i)} for i, size in enumerate(sizes)]
        parts = [*({"type": "image"} for _ in sizes), {"type": "text", "text": "What is it?"}]
        said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        raw = {"messages": [{"role": "user", "content": parts}, said], "images": images}
        found = self.encoder.encode(FORMAT.sample(raw), sizes)
        return {**raw, "input_ids": found.input_ids, "labels": found.labels}

    def rows(self) -> list[dict[str, Any]]:
        """Two images, none, one: of unequal length."""
        return [
            self.row("A red square beside a green triangle.", (84, 60), (40, 90)),
            self.row("Nothing to be seen."),
            self.row("A line.", (120, 50), seed=7),
        ]


def num_trained(rows: Iterable[dict[str, Any]]) -> int:
    """The labels of rows that something predicts."""
    return sum(label != UNTRAINED for row in rows for label in row["labels"][1:])


def png(size: tuple[int, int], seed: int) -> bytes:
    shape = (size[1], size[0], 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
