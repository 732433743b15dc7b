"""Further families that see images: each with its own way of cutting images and counting tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast

from tests.support.tiny.families import HIDDEN, gemma3_settings, text_settings

_Built = tuple[Any, Any]

_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
_PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]


def _qwen(
    tokenizer: PreTrainedTokenizerFast, name: str, vision: dict[str, Any], patch: int
) -> _Built:
    ids = tokenizer.convert_tokens_to_ids
    config = getattr(transformers, f"{name}Config")(
        text_config={
            **text_settings(tokenizer),
            "head_dim": HIDDEN // 4,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
            },
        },
        vision_config={"depth": 2, "num_heads": 2, "out_hidden_size": HIDDEN, **vision},
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    sizes = {"shortest_edge": (4 * patch) ** 2, "longest_edge": (2 * patch) ** 2 * 256}
    video = "Qwen3VLVideoProcessor" if name == "Qwen3VL" else "Qwen2VLVideoProcessor"
    processor = getattr(transformers, f"{name}Processor")(
        image_processor=transformers.Qwen2VLImageProcessor(size=sizes, patch_size=patch),
        tokenizer=tokenizer,
        video_processor=getattr(transformers, video)(size=sizes, patch_size=patch),
    )
    return config, processor


def _qwen2_5_vl(tokenizer: PreTrainedTokenizerFast) -> _Built:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    return _qwen(tokenizer, "Qwen2_5_VL", vision, 14)


def _qwen3_vl(tokenizer: PreTrainedTokenizerFast) -> _Built:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    return _qwen(tokenizer, "Qwen3VL", vision, 16)


def _llava_next(tokenizer: PreTrainedTokenizerFast) -> _Built:
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(
            **_TOWER, image_size=28, patch_size=7, projection_dim=32
        ),
        text_config=transformers.MistralConfig(**text_settings(tokenizer), sliding_window=None),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=_PINPOINTS,
        image_seq_length=16,
    )
    processor = transformers.LlavaNextProcessor(
        image_processor=transformers.LlavaNextImageProcessor(
            size={"shortest_edge": 28},
            crop_size={"height": 28, "width": 28},
            image_grid_pinpoints=_PINPOINTS,
        ),
        tokenizer=tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return config, processor


def _llava_onevision(tokenizer: PreTrainedTokenizerFast) -> _Built:
    pinpoints = [[28 * row, 28 * column] for row in range(1, 5) for column in range(1, 5)]
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(
            **_TOWER, image_size=28, patch_size=7, vision_use_head=False
        ),
        text_config=transformers.Qwen2Config(**text_settings(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_9",
    )
    size = {"height": 28, "width": 28}
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer,
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )
    return config, processor


def _idefics(tokenizer: PreTrainedTokenizerFast, name: str) -> _Built:
    config = getattr(transformers, f"{name}Config")(
        vision_config={**_TOWER, "image_size": 32, "patch_size": 8},
        text_config=transformers.LlamaConfig(**text_settings(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    video = {}
    if name == "SmolVLM":
        video["video_processor"] = transformers.SmolVLMVideoProcessor(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 32}
        )
    processor = getattr(transformers, f"{name}Processor")(
        image_processor=getattr(transformers, f"{name}ImageProcessor")(
            size={"longest_edge": 4 * 32}, max_image_size={"longest_edge": 32}
        ),
        tokenizer=tokenizer,
        image_seq_len=4,
        **video,
    )
    return config, processor


def _internvl(tokenizer: PreTrainedTokenizerFast) -> _Built:
    config = transformers.InternVLConfig(
        vision_config={**_TOWER, "image_size": [28, 28], "patch_size": [7, 7]},
        text_config=transformers.Qwen2Config(**text_settings(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    size = {"height": 28, "width": 28}
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size=size),
        image_seq_length=4,
    )
    return config, processor


def _gemma3(tokenizer: PreTrainedTokenizerFast) -> _Built:
    ids = tokenizer.convert_tokens_to_ids
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(
            **_TOWER, image_size=56, patch_size=14, vision_use_head=False
        ),
        text_config=transformers.Gemma3TextConfig(**gemma3_settings(tokenizer)),
        mm_tokens_per_image=4,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
    )
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        image_seq_length=4,
    )
    return config, processor


def _mistral3(tokenizer: PreTrainedTokenizerFast) -> _Built:
    config = transformers.Mistral3Config(
        vision_config=transformers.PixtralVisionConfig(**_TOWER, image_size=252, patch_size=14),
        text_config=transformers.MistralConfig(
            **text_settings(tokenizer), head_dim=HIDDEN // 4, sliding_window=None
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    processor = transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(
            size={"longest_edge": 252}, patch_size={"height": 14, "width": 14}
        ),
        tokenizer=tokenizer,
        patch_size=14,
        spatial_merge_size=2,
    )
    return config, processor


def _molmo2(tokenizer: PreTrainedTokenizerFast) -> _Built:
    ids = tokenizer.convert_tokens_to_ids
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    tower = {"hidden_size": 32, "intermediate_size": 48, **heads}
    text = {k: v for k, v in text_settings(tokenizer).items() if "token_id" not in k}
    config = transformers.Molmo2Config(
        vision_config={**tower, "num_hidden_layers": 3, "patch_size": 14, "image_size": [56, 56]},
        adapter_config={**tower, "vision_feature_layer": [2, 1], "text_hidden_size": HIDDEN},
        text_config={**text, "head_dim": HIDDEN // 4, "additional_vocab_size": 0},
        image_start_token_id=ids("<im_start>"),
        low_res_image_start_token_id=ids("<low_res_im_start>"),
        image_end_token_id=ids("<im_end>"),
        image_patch_id=ids("<im_patch>"),
        frame_start_token_id=ids("<frame_start>"),
        frame_end_token_id=ids("<frame_end>"),
    )
    size = {"height": 56, "width": 56}
    processor = transformers.Molmo2Processor(
        image_processor=transformers.Molmo2ImageProcessor(
            size=size, max_crops=4, overlap_margins=[1, 1]
        ),
        tokenizer=tokenizer,
        video_processor=transformers.Molmo2VideoProcessor(size=size),
    )
    return config, processor


def _paligemma(tokenizer: PreTrainedTokenizerFast) -> _Built:
    # As in the published models, `<image>` stands behind the vocabulary, within the padded logits.
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    text = {**text_settings(tokenizer), "vocab_size": image_token + 64, "num_key_value_heads": 1}
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(
            **_TOWER, image_size=56, patch_size=14, vision_use_head=False
        ),
        text_config=transformers.GemmaConfig(**text, head_dim=HIDDEN // 4, initializer_range=0.2),
        image_token_index=image_token,
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
    )
    processor = transformers.PaliGemmaProcessor(
        image_processor=transformers.SiglipImageProcessor(
            size={"height": 56, "width": 56}, image_seq_length=16
        ),
        tokenizer=tokenizer,
    )
    return config, processor


BUILDERS: dict[str, Callable[[PreTrainedTokenizerFast], _Built]] = {
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "idefics3": lambda tokenizer: _idefics(tokenizer, "Idefics3"),
    "smolvlm": lambda tokenizer: _idefics(tokenizer, "SmolVLM"),
    "internvl": _internvl,
    "gemma3": _gemma3,
    "mistral3": _mistral3,
    "molmo2": _molmo2,
    "paligemma": _paligemma,
}
TEMPLATES = {name: name for name in BUILDERS if name != "paligemma"} | {"qwen2_5_vl": "qwen2_vl"}
