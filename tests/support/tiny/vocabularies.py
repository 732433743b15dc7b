"""The tiny models' vocabularies: each family's special tokens around tokens trained here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATES = Path(__file__).parents[1] / "chat_templates"

_CORPUS = [
    *(Path(__file__).parents[3] / "LICENSE").read_text().splitlines(),
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
    words: tuple[str, ...] = ()
    """Ordinary tokens behind the trained ones, as PaliGemma's for places and outlines."""
    appended: tuple[str, ...] = ()
    """Special tokens behind those, as `<image>` in LLaVA and `<|image|>` in Llama."""
    named: dict[str, str] = field(default_factory=dict)
    """Tokens that the processor asks the tokenizer for by name."""


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
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_IDEFICS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *_TILES)
_QWEN_VL = _Vocabulary(
    special=(
        *(*_QWEN, "<|vision_start|>", "<|vision_end|>"),
        *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    ),
    eos="<|im_end|>",
    pad="<|endoftext|>",
)
_QWEN3 = _Vocabulary(special=_QWEN, eos="<|im_end|>", pad="<|endoftext|>")
_LLAVA = _Vocabulary(
    special=("<unk>", "<s>", "</s>"),
    bos="<s>",
    eos="</s>",
    pad="<pad>",
    adds_bos=True,
    appended=("<image>", "<pad>"),
)
_MISTRAL = _Vocabulary(
    special=(
        *("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        *("[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
    ),
    bos="<s>",
    eos="</s>",
    pad="<pad>",
    adds_bos=True,
)
_GEMMA3 = _Vocabulary(
    special=(
        *("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        *("<start_of_image>", "<end_of_image>"),
    ),
    bos="<bos>",
    eos="<eos>",
    pad="<pad>",
    adds_bos=True,
    appended=("<image_soft_token>",),
    named={
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    },
)
_VOCABULARIES = {
    "qwen2_vl": _QWEN_VL,
    "qwen2_5_vl": _QWEN_VL,
    "qwen3_vl": _QWEN_VL,
    "llava": _LLAVA,
    "llava_next": _LLAVA,
    "pixtral": _MISTRAL,
    "mistral3": _MISTRAL,
    "mistral": _MISTRAL,
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
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "llava_onevision": _Vocabulary(
        special=_QWEN,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        appended=("<image>", "<video>"),
    ),
    "internvl": _Vocabulary(
        special=_QWEN,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        appended=("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "molmo2": _Vocabulary(
        special=_QWEN,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        appended=(
            *("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<im_low>"),
            *("<frame_start>", "<frame_end>", "<|image|>", "<|video|>"),
        ),
    ),
    "idefics3": _Vocabulary(
        special=(*_LLAMA3, *_IDEFICS),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        pad="<|end_of_text|>",
        adds_bos=True,
    ),
    "smolvlm": _Vocabulary(
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *_IDEFICS),
        bos="<|im_start|>",
        eos="<end_of_utterance>",
        pad="<|im_end|>",
    ),
    "paligemma": _Vocabulary(
        special=("<pad>", "<eos>", "<bos>", "<unk>"),
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        adds_bos=True,
        words=(*(f"<loc{at:04}>" for at in range(1024)), *(f"<seg{at:03}>" for at in range(128))),
        appended=("<image>",),
    ),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
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
    tokenizer.add_tokens(list(vocabulary.words))
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
        **vocabulary.named,
    )
