"""A small LLaMA that the tests of this folder share."""

from __future__ import annotations

from transformers import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)
