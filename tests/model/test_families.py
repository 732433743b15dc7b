"""Facts of architectures, against the real models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from sailplan.model.families import family_of
from tests.support.tiny import FAMILIES, VISION_FAMILIES, build_tokenizer

TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]


def _load(folder: Path) -> tuple[Any, Any]:
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    return model, transformers.AutoProcessor.from_pretrained(folder)


def _starts(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{prefix}.") for prefix in prefixes)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_prefixes_of_vision_model_sort_every_parameter(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    model, _ = _load(tiny_model(family))
    facts = family_of(model.config)

    parts: dict[str, list[str]] = {"vision": [], "projector": [], "language": []}
    for name, _ in model.named_parameters():
        if _starts(name, facts.projector_prefixes):
            parts["projector"].append(name)
        elif _starts(name, facts.vision_prefixes):
            parts["vision"].append(name)
        else:
            assert _starts(name, facts.language_prefixes), name
            parts["language"].append(name)

    assert facts.name == family
    assert all(parts.values()), {part: len(names) for part, names in parts.items()}
    assert not any("q_proj" in name for name in parts["projector"])


def test_text_model_has_no_vision_prefixes(tiny_model: Callable[[str], Path]) -> None:
    facts = family_of(transformers.AutoConfig.from_pretrained(tiny_model("llama")))

    assert not facts.is_vision
    assert facts.vision_prefixes == facts.projector_prefixes == ()


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_unused_parameters_are_those_without_gradient(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    model, processor = _load(tiny_model(family))
    noise = torch.randint(0, 256, (90, 150, 3), generator=torch.Generator().manual_seed(0))
    inputs = processor(
        images=[Image.fromarray(noise.to(torch.uint8).numpy())],
        text=[f"{processor.image_token}Describe the product."],
        return_tensors="pt",
    )
    labels = inputs["input_ids"].clone()
    labels[labels >= model.config.get_text_config().vocab_size] = -100
    model(**inputs, labels=labels).loss.backward()

    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]

    assert family_of(model.config).unused_parameters(model) == without
    assert bool(without) == (family == "llava")


@pytest.mark.parametrize(
    ("family", "tokens"),
    [
        (
            "qwen2_vl",
            [
                *("<|image_pad|>", "<|video_pad|>"),
                *("<|vision_end|>", "<|vision_pad|>", "<|vision_start|>"),
            ],
        ),
        ("llava", ["<image>"]),
        ("pixtral", ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]),
        ("mllama", ["<|image|>"]),
        ("llava_onevision", ["<image>", "<video>"]),
        ("idefics3", ["<fake_token_around_image>", "<global-img>", "<image>", *TILES]),
        ("internvl", ["</img>", "<IMG_CONTEXT>", "<img>", "<video>"]),
        ("gemma3", ["<end_of_image>", "<image_soft_token>", "<start_of_image>"]),
        (
            "molmo2",
            [
                *("<frame_end>", "<frame_start>", "<im_col>", "<im_end>", "<im_low>"),
                *("<im_patch>", "<im_start>", "<low_res_im_start>", "<|image|>", "<|video|>"),
            ],
        ),
        ("llama", []),
    ],
)
def test_untrained_token_ids_are_the_media_tokens(
    tiny_model: Callable[[str], Path], family: str, tokens: list[str]
) -> None:
    folder = tiny_model(family)
    auto = transformers.AutoTokenizer if family == "llama" else transformers.AutoProcessor
    processor = auto.from_pretrained(folder)
    facts = family_of(transformers.AutoConfig.from_pretrained(folder))

    ids = facts.untrained_token_ids(processor)

    tokenizer = getattr(processor, "tokenizer", processor)
    assert sorted(tokenizer.convert_ids_to_tokens(sorted(ids))) == tokens


def test_vocabulary_of_mllama_ends_before_its_image_token(
    tiny_model: Callable[[str], Path],
) -> None:
    config = transformers.AutoConfig.from_pretrained(tiny_model("mllama"))

    assert family_of(config).vocabulary_size == config.image_token_index


@pytest.mark.parametrize("family", FAMILIES)
def test_length_limit_is_that_of_language_model(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    config = transformers.AutoConfig.from_pretrained(tiny_model(family))

    assert family_of(config).max_length_tokens == 2048


def test_family_never_heard_of_is_derived_from_config() -> None:
    tokenizer = build_tokenizer("llava")
    config = transformers.InternVLConfig(image_token_id=len(tokenizer) - 2)

    facts = family_of(config)

    assert facts.is_vision
    assert not facts.nested_images
    assert facts.untrained_token_ids(tokenizer) == {len(tokenizer) - 2}


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (
            "gemma4",
            {"text_config": {"use_bidirectional_attention": "vision"}},
            "its image tokens attend to each other in both directions",
        ),
        ("llama4", {}, "its chunked_attention layers carry over from one sample to the next"),
        ("qwen3_next", {}, "its linear_attention layers carry over"),
        ("lfm2", {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}, "its conv"),
        ("bamba", {}, "layers carry over"),
        ("falcon_h1", {}, "layers carry over"),
    ],
)
def test_family_whose_samples_would_touch_in_a_row_says_so(
    kind: str, settings: dict[str, Any], words: str
) -> None:
    obstacle = family_of(transformers.AutoConfig.for_model(kind, **settings)).packing_obstacle
    assert obstacle is not None
    assert words in obstacle
