"""Tiny random models, one of each family, as a folder that the Auto classes load offline.

Each has the family's real special tokens, processor and published chat template (see
`chat_templates/README.md`), a byte-level BPE tokenizer trained here, fp32 weights from a fixed
seed, hidden size 64 and two or three layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    MistralConfig,
    MllamaConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

CHAT_TEMPLATES = Path(__file__).parent / "chat_templates"
FAMILIES = ("qwen2_vl", "llava", "pixtral", "mllama", "llama")
VISION_FAMILIES = FAMILIES[:-1]

HIDDEN = 64
_CORPUS = [
    *(Path(__file__).parents[2] / "LICENSE").read_text().splitlines(),
    "You are a helpful assistant. A chat between a curious user and an artificial assistant.",
    "What is shown in this image? How many red circles, blue squares and green triangles?",
    "Describe the product. Two small red squares on a white ground. A large green triangle.",
    "system user assistant USER: ASSISTANT: Human: Assistant: ### Instruction: ### Response:",
    "Cutting Knowledge Date: December 2023 Today Date: 26 Jul 2024",
]


@dataclass(frozen=True, kw_only=True)
class _Vocabulary:
    """Special tokens in the order of their ids, which precede the trained tokens."""

    special: tuple[str, ...]
    eos: str
    pad: str | None
    bos: str | None = None
    adds_bos: bool = False
    appended: tuple[str, ...] = ()
    """Special tokens behind the trained ones, as `<image>` in LLaVA and `<|image|>` in Llama."""


_LLAMA3 = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
_VOCABULARIES = {
    "qwen2_vl": _Vocabulary(
        special=(
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|vision_pad|>",
            "<|image_pad|>",
            "<|video_pad|>",
        ),
        eos="<|im_end|>",
        pad="<|endoftext|>",
    ),
    "llava": _Vocabulary(
        special=("<unk>", "<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        adds_bos=True,
        appended=("<image>", "<pad>"),
    ),
    "pixtral": _Vocabulary(
        special=(
            *("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
            *("[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
        ),
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        adds_bos=True,
    ),
    "mllama": _Vocabulary(
        special=_LLAMA3,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        adds_bos=True,
        appended=("<|image|>",),
    ),
    "llama": _Vocabulary(
        special=_LLAMA3,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        adds_bos=True,
    ),
}
_TEMPLATES = {
    "qwen2_vl": "qwen2_vl",
    "llava": "llava_1.5",
    "pixtral": "pixtral",
    "mllama": "llama3.2_vision",
    "llama": "llama3.2",
}


def chat_template(name: str) -> str:
    """Returns a published template of `chat_templates/` by its file's stem."""
    return (CHAT_TEMPLATES / f"{name}.jinja").read_text()


def build_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer with the special tokens of `family`."""
    vocabulary = _VOCABULARIES[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[AddedToken(token, special=True) for token in vocabulary.special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token) for token in vocabulary.appended])
    if vocabulary.adds_bos:
        bos = str(vocabulary.bos)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A $B",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=vocabulary.bos,
        eos_token=vocabulary.eos,
        pad_token=vocabulary.pad,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _text_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
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


def _qwen2_vl(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            **_text_settings(tokenizer),
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
        text_config=LlamaConfig(**_text_settings(tokenizer)),
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
            **_text_settings(tokenizer), head_dim=HIDDEN // 4, sliding_window=None
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
    text = {**_text_settings(tokenizer), "vocab_size": image_token}
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
    return LlamaConfig(**_text_settings(tokenizer), tie_word_embeddings=False), tokenizer


_BUILDERS: dict[str, Callable[[PreTrainedTokenizerFast], tuple[Any, Any]]] = {
    "qwen2_vl": _qwen2_vl,
    "llava": _llava,
    "pixtral": _pixtral,
    "mllama": _mllama,
    "llama": _llama,
}


def build_tiny(family: str, folder: Path) -> Path:
    """Writes the tiny model of one of `FAMILIES` with its processor into `folder`.

    Returns:
        The folder, to be passed as `model_name_or_path`.
    """
    tokenizer = build_tokenizer(family)
    tokenizer.chat_template = chat_template(_TEMPLATES[family])
    config, processor = _BUILDERS[family](tokenizer)
    if processor is not tokenizer:
        processor.chat_template = tokenizer.chat_template
    with torch.random.fork_rng():
        torch.manual_seed(0)
        auto = "AutoModelForCausalLM" if family == "llama" else "AutoModelForImageTextToText"
        model = getattr(transformers, auto).from_config(config, dtype=torch.float32)
        if family == "mllama":
            # A fresh model's gates are zero: cross-attention would have no effect at all.
            for name, parameter in model.named_parameters():
                if "gate" in name and parameter.numel() == 1:
                    torch.nn.init.constant_(parameter, 0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
