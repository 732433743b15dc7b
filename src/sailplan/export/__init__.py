"""Merged models in other forms than Hugging Face's 16-bit folders."""
