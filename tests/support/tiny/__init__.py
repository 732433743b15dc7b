"""Tiny random models, one of each family, as a folder that the Auto classes load offline.

Each has the family's real special tokens, processor and published chat template (see
`chat_templates/README.md`; sailplan's own where none is published), a byte-level BPE tokenizer
trained here, fp32 weights from a fixed seed, hidden size 64 and two or three layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from sailplan.data.default_template import complete_template
from sailplan.model.families import family_of
from tests.support.tiny import families, more_families
from tests.support.tiny.vocabularies import build_tokenizer, chat_template

__all__ = (
    "FAMILIES",
    "MORE_FAMILIES",
    "TEXT_FAMILIES",
    "VISION_FAMILIES",
    "build_processor",
    "build_tiny",
    "build_tokenizer",
    "chat_template",
)

FAMILIES = ("qwen2_vl", "llava", "pixtral", "mllama", "llama")
"""What the tests of everything run on."""
VISION_FAMILIES = FAMILIES[:-1]
TEXT_FAMILIES = ("llama", "qwen3", "mistral", "gemma3_text", "qwen3_moe")
MORE_FAMILIES = tuple(more_families.BUILDERS)
"""What the tests of images and labels run on besides; all of them see images."""

_BUILDERS = families.BUILDERS | more_families.BUILDERS
_TEMPLATES = families.TEMPLATES | more_families.TEMPLATES


def build_processor(family: str) -> tuple[Any, Any]:
    """Returns the config and the processor of a tiny model, without the model."""
    tokenizer = build_tokenizer(family)
    if family in _TEMPLATES:
        tokenizer.chat_template = chat_template(_TEMPLATES[family])
    config, processor = _BUILDERS[family](tokenizer)
    if family not in _TEMPLATES:
        complete_template(processor, family_of(config), chat=True)
    elif processor is not tokenizer:
        processor.chat_template = tokenizer.chat_template
    return config, processor


def build_tiny(family: str, folder: Path) -> Path:
    """Writes the tiny model of one of `FAMILIES` or `MORE_FAMILIES` into `folder`.

    Returns:
        The folder, to be passed as `model_name_or_path`.
    """
    config, processor = build_processor(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        auto = "AutoModelForCausalLM" if family in TEXT_FAMILIES else "AutoModelForImageTextToText"
        model = getattr(transformers, auto).from_config(config, dtype=torch.float32)
        if family == "mllama":
            # A fresh model's gates are zero: cross-attention would have no effect at all.
            for name, parameter in model.named_parameters():
                if "gate" in name and parameter.numel() == 1:
                    torch.nn.init.constant_(parameter, 0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
