"""What has to be known of a model's architecture, derived from its config.

A family needs a line here only where it differs from what its config, its processor and the module
names that transformers 5 settled on already say. `family_of` therefore works for a family that
this module has never heard of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# Module names under `model.` (transformers 5: `PreTrainedModel.get_encoder` looks for the same).
_VISION_MODULES = (
    *("visual", "vision_tower", "vision_model", "vision_encoder", "image_tower", "video_tower"),
    *("audio_tower", "embed_vision", "embed_audio"),
)
_PROJECTOR_MODULES = (
    *("multi_modal_projector", "connector", "aligner", "merger", "vision_adapter", "qformer"),
    *("language_projection", "query_tokens", "image_newline", "visual_embeddings_table"),
    # Qwen keeps its projector inside the vision module.
    *("visual.merger", "visual.deepstack_merger_list"),
)
_LANGUAGE_MODULES = ("language_model", "text_model")

_MEDIA = r"(image|img|images|vision|video|audio|boi|eoi|boa|eoa|patch|frame|row|col)"
_MEDIA_SETTING = re.compile(rf"(^|_){_MEDIA}(_\w+)*_token_(id|ids|index)$|^(boi|eoi)_token_")
MEDIA_TOKEN = re.compile(r"image|img|vision|video|audio|patch|<row_|fake_token", re.IGNORECASE)

_BY_ROW = {"nested_images": True, "pixels_by_row": True}
# What neither config nor processor says, by the fields of `Family`, as transformers 5.23 has it.
_KNOWN: dict[str, dict[str, Any]] = {
    "gemma3": {"sees_both_ways": True},
    "gemma3n": {"sees_both_ways": True},
    "idefics2": _BY_ROW,
    "idefics3": _BY_ROW,
    # Cuts only images that are alone into tiles.
    "llava_onevision": {"nested_images": True},
    # `Mistral3PatchMerger` reads an image of one token as none of several.
    "mistral3": {"min_image_tokens": 2},
    # An image is one token, and a row without images skips layers or attends to padding
    # (`_prepare_cross_attention_mask`), so that no dummy image is neutral.
    "mllama": {
        **_BY_ROW,
        "cross_attention": True,
        "packing_obstacle": "every token of a row sees all images of the row",
    },
    # `Molmo2Processor.__call__` puts the beginning of a text there itself.
    "molmo2": {"sees_both_ways": True, "opened_by_processor": True},
    # `PaliGemmaProcessor` lays out what it is given (`prepare_inputs_layout`) and takes no text
    # without an image (`validate_inputs`); published without a chat template.
    "paligemma": {
        "sees_both_ways": True,
        "prefix_lm": True,
        "needs_images": True,
        "own_template": "paligemma",
    },
    "smolvlm": _BY_ROW,
}
# Why samples cannot share a row: without a mask of tokens × tokens they would see each other.
_BOTH_WAYS = "its image tokens attend to each other in both directions"
_PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention"})
# Their vision features are taken before these modules, which therefore never train.
_UNUSED_TOWER_MODULES = {
    "clip_vision_model": ("post_layernorm",),
    "siglip_vision_model": ("post_layernorm", "head"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Facts of one architecture. Prefixes are of parameter names as `named_parameters` has them."""

    name: str
    """The config's `model_type`; `pixtral` where a LLaVA config holds Pixtral's vision tower."""
    is_vision: bool
    """Whether the model sees images at all."""
    vision_prefixes: tuple[str, ...]
    """The vision (and audio) towers; a projector that lies inside one counts as projector too."""
    projector_prefixes: tuple[str, ...]
    """What maps vision features to the language model's width."""
    language_prefixes: tuple[str, ...]
    """The language model and its head."""
    vocabulary_size: int
    """Logits per token; ids from here on can be read but never predicted."""
    max_length_tokens: int | None
    """Positions that the language model was built for."""
    nested_images: bool = False
    """Whether the image processor takes `[[images of sample 0], [images of sample 1], …]`."""
    pixels_by_row: bool = False
    """Whether it returns a row of pixels for each sample."""
    packing_obstacle: str | None
    """Why several samples cannot stand in one row; None where they can."""
    sees_both_ways: bool
    """Whether some tokens attend to later ones, for which flash-attention has no mask."""
    prefix_lm: bool = False
    """Whether the prompt is a prefix that sees itself both ways, told from the answer by
    `token_type_ids` (0 and 1) and written by the processor: images, BOS, words, a line break."""
    needs_images: bool = False
    """Whether every sample must have an image."""
    own_template: str | None = None
    """The chat template that sailplan brings for it; None where its models bring theirs."""
    sliding_window_tokens: int | None
    """How far back some layers see; None where all see everything."""
    cross_attention: bool = False
    """Whether images reach the language model through cross-attention only."""
    min_image_tokens: int = 1
    """The fewest tokens of an image that the model can read."""
    opened_by_processor: bool = False
    """Whether every prompt begins with BOS, or EOS where the tokenizer has no BOS."""
    image_token_id: int | None
    """The id in whose places image features are put, in cross-attention where an image stands."""
    media_token_ids: frozenset[int]
    """Ids that the config names as standing for, or around, images, video and audio."""

    def image_token(self, processor: Any) -> str | None:
        """Returns the token of `image_token_id`; None of a model that sees none.

        The processors of Gemma 3 and Molmo 2 call another one so, which gives way to it.

        Args:
            processor: The model's processor, or its tokenizer for a text-only model.
        """
        if self.image_token_id is None:
            return None
        return str(tokenizer_of(processor).convert_ids_to_tokens(self.image_token_id))

    def untrained_token_ids(self, processor: Any) -> frozenset[int]:
        """Returns the ids that are never trained on: everything that stands for or frames media.

        Args:
            processor: The model's processor, or its tokenizer for a text-only model.
        """
        tokenizer = tokenizer_of(processor)
        ids = set(self.media_token_ids)
        for name in ("image_token_ids", "video_token_ids", "audio_token_ids"):
            ids.update(_integers(getattr(processor, name, None)))
        ids.update(
            token_id
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.special and MEDIA_TOKEN.search(token.content)
        )
        return frozenset(ids)

    def unused_parameters(self, model: Any) -> list[str]:
        """Returns the names of parameters that no forward pass reaches, so that none can train.

        LLaVA and its kin read the vision tower's hidden states at `vision_feature_layer`, so the
        layers behind it, the tower's last norm and its pooling head are dead weight.
        """
        config = model.config
        vision = getattr(config, "vision_config", None)
        layers = _integers(
            getattr(config, "vision_feature_layer", getattr(config, "vision_feature_layers", None))
        )
        modules = _UNUSED_TOWER_MODULES.get(getattr(vision, "model_type", ""))
        if vision is None or modules is None or not layers:
            return []
        depth = vision.num_hidden_layers
        # hidden_states[0] is the embedding, so index i needs the layers below i.
        num_used = max(layer if layer >= 0 else depth + 1 + layer for layer in layers)
        dead = [*modules, *(f"encoder.layers.{index}" for index in range(num_used, depth))]
        pattern = re.compile(
            rf"\b({'|'.join(map(re.escape, self.vision_prefixes))})\.(\w+\.)?"
            rf"({'|'.join(map(re.escape, dead))})\."
        )
        return [name for name, _ in model.named_parameters() if pattern.search(name)]


def family_of(config: Any) -> Family:
    """Returns the facts of the model that `config` (a `PreTrainedConfig`) describes."""
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    name = str(config.model_type)
    if name == "llava" and getattr(vision, "model_type", None) == "pixtral":
        name = "pixtral"
    is_vision = vision is not None or getattr(config, "vq_config", None) is not None
    both_ways = sees_both_ways(name, getattr(text, "use_bidirectional_attention", None))
    known = {
        "sees_both_ways": both_ways,
        "packing_obstacle": _BOTH_WAYS if both_ways else _carried_over(text),
        **_KNOWN.get(name, {}),
    }
    media: set[int] = set()
    for key, value in config.to_dict().items():
        if _MEDIA_SETTING.search(key):
            media.update(_integers(value))
    return Family(
        name=name,
        is_vision=is_vision,
        vision_prefixes=_prefixes(_VISION_MODULES) if is_vision else (),
        projector_prefixes=_prefixes(_PROJECTOR_MODULES) if is_vision else (),
        language_prefixes=(*(_prefixes(_LANGUAGE_MODULES) if is_vision else ("model",)), "lm_head"),
        vocabulary_size=int(text.vocab_size),
        max_length_tokens=getattr(text, "max_position_embeddings", None),
        sliding_window_tokens=_sliding_window(text),
        image_token_id=_image_token_id(config) if is_vision else None,
        media_token_ids=frozenset(media),
        **known,
    )


def tokenizer_of(processor: Any) -> Any:
    """Returns the tokenizer of a processor, or the tokenizer itself."""
    return getattr(processor, "tokenizer", processor)


def _image_token_id(config: Any) -> int | None:
    names = ("image_token_id", "image_token_index", "image_patch_id")
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def sees_both_ways(name: str, bidirectional: Any) -> bool:
    """Tells whether some tokens of a family attend to later ones.

    Args:
        name: The config's `model_type`.
        bidirectional: What its language model's config says of `use_bidirectional_attention`:
            "vision" in some Gemma 4.
    """
    return bool(_KNOWN.get(name, {}).get("sees_both_ways") or bidirectional)


def _carried_over(text: Any) -> str | None:
    kinds = {*(getattr(text, "layer_types", None) or ())} - _PLAIN_LAYERS
    if getattr(text, "attention_chunk_size", None):
        kinds.add("chunked_attention")
    if kinds:
        return f"its {', '.join(sorted(kinds))} layers carry over from one sample to the next"
    return None


def _sliding_window(text: Any) -> int | None:
    kinds = getattr(text, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else True
    window = getattr(text, "sliding_window", None)
    return int(window) if slides and window else None


def _prefixes(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"model.{name}" for name in names)


def _integers(value: Any) -> list[int]:
    values = value if isinstance(value, (list, tuple, set)) else [value]
    return [item for item in values if isinstance(item, int) and not isinstance(item, bool)]
