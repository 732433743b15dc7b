"""sailplan: plans, proves and launches supervised fine-tuning of vision-language models."""

__version__ = "0.1.0"
