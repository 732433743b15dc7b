"""Builds the demo's model: a Qwen2-VL of about 0.4 M parameters with its own small tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin, Qwen2VLConfig

VOCABULARY_SIZE = 512
CONTEXT_TOKENS = 1024

INITIALIZER_RANGE = 0.07
"""Wider than Qwen2-VL's 0.02, with which a model of 64 dimensions never began to look."""

IMAGE_MEAN, IMAGE_STD = 0.9, 0.2
"""Centre the light grounds of the catalogue's cards; with CLIP's mean, colours came late."""


SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""The names that Qwen2-VL gives to its special tokens."""

END_OF_TURN = "<|im_end|>"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}{%- endif -%}
{{- '<|im_end|>' -}}
{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- else -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def build_model(folder: Path, *, texts: Iterable[str], seed: int) -> PreTrainedModel:
    """Builds model and processor, saves both to `folder` and returns the model.

    Args:
        folder: Where they are saved; `from_pretrained(folder)` loads them without a network.
        texts: What the tokenizer is trained on.
        seed: Of the random weights.
    """
    import torch
    from transformers import Qwen2VLForConditionalGeneration

    processor = _build_processor(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration(_build_config(processor))
    model.generation_config.update(
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def _build_processor(texts: Iterable[str]) -> ProcessorMixin:
    from transformers import (
        Qwen2Tokenizer,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = Qwen2Tokenizer(eos_token=END_OF_TURN).train_new_from_iterator(
        texts,
        vocab_size=VOCABULARY_SIZE,
        new_special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.model_max_length = CONTEXT_TOKENS
    pixels = {
        "min_pixels": 56 * 56,
        "max_pixels": 112 * 112,
        "image_mean": [IMAGE_MEAN] * 3,
        "image_std": [IMAGE_STD] * 3,
    }
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=CHAT_TEMPLATE,
    )


def _build_config(processor: ProcessorMixin) -> Qwen2VLConfig:
    from transformers import Qwen2VLConfig

    tokenizer = processor.tokenizer
    token_ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": CONTEXT_TOKENS,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [2, 3, 3],
            },
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "initializer_range": INITIALIZER_RANGE,
        },
        vision_config={
            "embed_dim": 64,
            "depth": 2,
            "num_heads": 4,
            "mlp_ratio": 2,
            "hidden_size": 64,
            "initializer_range": INITIALIZER_RANGE,
        },
        image_token_id=token_ids["image_pad"],
        video_token_id=token_ids["video_pad"],
        vision_start_token_id=token_ids["vision_start"],
        vision_end_token_id=token_ids["vision_end"],
        tie_word_embeddings=False,
    )
