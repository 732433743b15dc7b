"""The five families that the tests of everything run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    CLIPVisionConfig,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    MistralConfig,
    MllamaConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

HIDDEN = 64


def text_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What a tiny language model of any kind is built with."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def gemma3_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What Gemma 3's tiny language model is built with, with images and without."""
    return {
        **text_settings(tokenizer),
        "head_dim": HIDDEN // 4,
        "query_pre_attn_scalar": HIDDEN // 4,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    }


def _qwen2_vl(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            **text_settings(tokenizer),
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
            },
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": HIDDEN,
            "num_heads": 2,
            "mlp_ratio": 2,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    sizes = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=sizes),
    )
    return config, processor


def _llava(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    from transformers import CLIPImageProcessor, LlavaProcessor

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
            projection_dim=32,
        ),
        text_config=LlamaConfig(**text_settings(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return config, processor


def _pixtral(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    from transformers import PixtralImageProcessor, PixtralProcessor

    config = LlavaConfig(
        vision_config=PixtralVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=256,
            patch_size=16,
        ),
        text_config=MistralConfig(
            **text_settings(tokenizer), head_dim=HIDDEN // 4, sliding_window=None
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("[IMG]"),
        image_seq_length=1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 256}),
        tokenizer=tokenizer,
        patch_size=16,
    )
    return config, processor


def _mllama(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    from transformers import MllamaImageProcessor, MllamaProcessor

    # As in the published model, `<|image|>` is one past the language model's vocabulary: it has an
    # input embedding but no logit.
    image_token = tokenizer.convert_tokens_to_ids("<|image|>")
    text = {**text_settings(tokenizer), "vocab_size": image_token}
    config = MllamaConfig(
        vision_config=MllamaVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_global_layers=1,
            attention_heads=2,
            image_size=56,
            patch_size=14,
            max_num_tiles=4,
            intermediate_layers_indices=[0, 1],
            vision_output_dim=32 * 3,
        ),
        text_config=MllamaTextConfig(
            **{**text, "num_hidden_layers": 3}, cross_attention_layers=[1]
        ),
        image_token_index=image_token,
    )
    processor = MllamaProcessor(
        image_processor=MllamaImageProcessor(size={"height": 56, "width": 56}, max_image_tiles=4),
        tokenizer=tokenizer,
    )
    return config, processor


def _llama(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    return LlamaConfig(**text_settings(tokenizer), tie_word_embeddings=False), tokenizer


def _qwen3(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    return Qwen3Config(**text_settings(tokenizer), head_dim=HIDDEN // 4), tokenizer


def _qwen3_moe(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return Qwen3MoeConfig(**text_settings(tokenizer), head_dim=HIDDEN // 4, **experts), tokenizer


def _mistral(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    config = MistralConfig(**text_settings(tokenizer), head_dim=HIDDEN // 4, sliding_window=None)
    return config, tokenizer


def _gemma3_text(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    return Gemma3TextConfig(**gemma3_settings(tokenizer)), tokenizer


BUILDERS: dict[str, Callable[[PreTrainedTokenizerFast], tuple[Any, Any]]] = {
    "qwen2_vl": _qwen2_vl,
    "llava": _llava,
    "pixtral": _pixtral,
    "mllama": _mllama,
    "llama": _llama,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "mistral": _mistral,
    "gemma3_text": _gemma3_text,
}

TEMPLATES = {
    "qwen2_vl": "qwen2_vl",
    "llava": "llava_1.5",
    "pixtral": "pixtral",
    "mllama": "llama3.2_vision",
    "llama": "llama3.2",
    "qwen3": "qwen2_vl",  # ChatML, as Qwen3's own where nothing is thought
    "qwen3_moe": "qwen2_vl",
    "mistral": "mistral3",
    "gemma3_text": "gemma3",
}
