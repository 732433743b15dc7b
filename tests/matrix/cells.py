"""The matrix: every family by every method on one process, three families on two ranks as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VISION = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "llava_next", "llava_onevision", "pixtral"),
    *("mllama", "idefics3", "smolvlm", "gemma3", "internvl", "molmo2", "paligemma", "mistral3"),
)
TEXT = ("llama", "qwen3", "mistral", "gemma3_text", "qwen3_moe")
FAMILIES = (*VISION, *TEXT)
"""Each as `tests.support.tiny` builds it."""

_LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0}
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": _LORA,
    "qlora": {**_LORA, "load_in_4bit": True, "use_bnb_nested_quant": True},
    "int8": {**_LORA, "load_in_8bit": True},
    "full-qlora": {"load_in_4bit": True},
    "full-int8": {"load_in_8bit": True},
}
"""What a run file says for each; the last two cannot work, and must be refused."""

STRATEGIES = {"single": 1, "ddp": 2, "zero2": 2, "zero3": 2}
"""Ranks of each strategy."""
ON_RANKS = ("qwen2_vl", "llava", "llama")
"""The families that every strategy is tried with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One family, trained by one method under one strategy."""

    family: str
    method: str
    strategy: str

    @property
    def name(self) -> str:
        """Its name in results and test ids."""
        return f"{self.family}/{self.method}/{self.strategy}"


CELLS = (
    *(
        Cell(family=family, method=method, strategy="single")
        for family in FAMILIES
        for method in METHODS
    ),
    *(
        Cell(family=family, method=method, strategy=strategy)
        for family in ON_RANKS
        for strategy in list(STRATEGIES)[1:]
        for method in METHODS
    ),
)
"""All of them; a run of the matrix that lacks one is a failure."""
