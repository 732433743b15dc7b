"""A small Llama, and what tests of merging do with the folders that hold it."""

from __future__ import annotations

from pathlib import Path

import xxhash
from transformers import AutoModelForCausalLM, LlamaConfig

SMALL = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    tie_word_embeddings=False,
    architectures=["LlamaForCausalLM"],
)


def published(folder: Path) -> Path:
    """A published model in several files."""
    AutoModelForCausalLM.from_config(SMALL).save_pretrained(folder, max_shard_size="20KB")
    return folder


def digests(folder: Path) -> dict[str, str]:
    """A digest of each file in a folder, by its path there."""
    return {
        str(path.relative_to(folder)): xxhash.xxh3_128_hexdigest(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
