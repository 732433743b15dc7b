"""Attention by segment: each sample as if it were alone, in models of many kinds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.masking_utils import create_causal_mask

from sailplan.model.families import family_of
from sailplan.model.packed_attention import SEGMENTS, attend_by_mask, attend_by_segment
from sailplan.model.positions import Positions

TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
IMAGE = 127


def build(kind: str, **settings: Any) -> Any:
    """A tiny random model of a kind, fp32, its attention transformers' `sdpa`."""
    config = AutoConfig.for_model(kind, **settings)
    vision = getattr(config, "vision_config", None) is not None
    auto = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    return model.eval()


def drawn(*lengths: int) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    return [torch.randint(3, 120, (1, length), generator=chance) for length in lengths]


def plain(samples: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    positions = [torch.arange(sample.shape[1]) for sample in samples]
    return {"input_ids": torch.cat(samples, dim=1), "position_ids": torch.cat(positions)[None]}


@torch.no_grad()
def logits(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**inputs, use_cache=False).logits[0]  # type: ignore[no-any-return]


def assert_row_is_its_samples(model: Any, samples: list[torch.Tensor]) -> None:
    alone = torch.cat([logits(model, input_ids=sample) for sample in samples])

    attend_by_segment(model)

    torch.testing.assert_close(logits(model, **plain(samples)), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("olmo2", {}),
        ("phi3", {}),
        ("starcoder2", {}),
        ("gpt_neox", {}),
        ("glm4", {"head_dim": 16}),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("qwen2_moe", EXPERTS),
        ("gemma3_text", {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
def test_row_of_a_text_family_that_is_named_nowhere_is_its_samples(
    kind: str, settings: dict[str, Any]
) -> None:
    model = build(kind, **TINY, **settings)
    assert family_of(model.config).packing_obstacle is None
    assert_row_is_its_samples(model, drawn(7, 1, 12))


@pytest.mark.parametrize("lengths", [(5, 8, 3), (9, 30, 20), (40,)], ids=["within", "over", "one"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mistral", {}),
        ("gemma3_text", {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
def test_row_under_a_sliding_window_is_its_samples(
    kind: str, settings: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    model = build(kind, **TINY, sliding_window=16, **settings)
    assert family_of(model.config).sliding_window_tokens == 16
    assert_row_is_its_samples(model, drawn(*lengths))


@pytest.mark.parametrize(
    "broken",
    [
        {"attention_mask": torch.ones(1, 20, dtype=torch.long)},
        {"use_cache": True},
        {"position_ids": torch.arange(20)[None]},
    ],
    ids=["mask", "cache", "positions"],
)
def test_row_under_stock_attention_is_its_samples_without_mask_and_cache_alone(
    broken: dict[str, Any],
) -> None:
    """Why batches have no mask, and nothing is cached: transformers then sees one long sample."""
    model = build("llama", **TINY)
    samples = drawn(7, 1, 12)
    given = {**plain(samples), "use_cache": False}
    with torch.no_grad():
        alone = torch.cat([model(input_ids=sample).logits[0] for sample in samples])
        torch.testing.assert_close(model(**given).logits[0], alone, rtol=1e-5, atol=1e-5)
        found = model(**{**given, **broken}).logits[0]

    assert (found[:7] - alone[:7]).abs().max() < 1e-5
    assert (found[7:] - alone[7:]).abs().max() > 1e-3


def test_stock_attention_makes_a_mask_of_the_whole_row_and_ours_none() -> None:
    config = build("llama", **TINY).config
    inputs = {
        "inputs_embeds": torch.zeros(1, 20, 64),
        "attention_mask": None,
        "past_key_values": None,
        "position_ids": plain(drawn(7, 1, 12))["position_ids"],
    }
    segmented = copy.deepcopy(config)
    segmented._attn_implementation = SEGMENTS

    stock = create_causal_mask(config, **inputs)

    assert stock is not None
    assert stock.shape[-2:] == (20, 20)
    assert create_causal_mask(segmented, **inputs) is None


def test_layers_that_see_both_ways_keep_their_mask() -> None:
    config = build("llama", **TINY).config
    blocks = torch.tensor([[-1, 0, 0, 0, -1, 1, 1]])
    inputs = {
        "inputs_embeds": torch.zeros(1, 7, 64),
        "attention_mask": None,
        "past_key_values": None,
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]]),
        "block_sequence_ids": blocks,
    }
    expected = create_causal_mask(config, **inputs)
    segmented = copy.deepcopy(config)
    segmented._attn_implementation = SEGMENTS

    found = create_causal_mask(segmented, **inputs)

    assert expected is not None
    assert found is not None
    assert found.equal(expected)


SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
}


def _glm4v() -> tuple[Any, int, Callable[[int], dict[str, Any]]]:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "image_size": 56,
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    text = {**TINY, "rope_parameters": {**rope, "partial_rotary_factor": 0.5}}
    ids = {"image_start_token_id": 121, "image_end_token_id": 122, "image_token_id": IMAGE}
    video = {"video_start_token_id": 123, "video_end_token_id": 124, "video_token_id": 125}
    model = build("glm4v", text_config=text, vision_config=vision, **ids, **video)
    pixels = 3 * 2 * 14 * 14

    def images(count: int) -> dict[str, Any]:
        return {
            "pixel_values": torch.randn(16 * count, pixels),
            "image_grid_thw": torch.tensor([[1, 4, 4]] * count),
        }

    return model, 4, images


def _square(count: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn(count, 3, 56, 56)}


def _aya_vision() -> tuple[Any, int, Callable[[int], dict[str, Any]]]:
    text = {**TINY, "model_type": "cohere2", "head_dim": 16, "sliding_window": 64}
    ids = {"image_token_index": IMAGE}
    return build("aya_vision", text_config=text, vision_config=SIGLIP, **ids), 4, _square


def _deepseek_vl() -> tuple[Any, int, Callable[[int], dict[str, Any]]]:
    text = {**TINY, "model_type": "llama"}
    ids = {"image_token_id": IMAGE}
    return build("deepseek_vl", text_config=text, vision_config=SIGLIP, **ids), 16, _square


@pytest.mark.parametrize("make", [_glm4v, _aya_vision, _deepseek_vl])
def test_row_of_a_vision_family_that_is_named_nowhere_is_its_samples(
    make: Callable[[], tuple[Any, int, Callable[[int], dict[str, Any]]]],
) -> None:
    model, tokens, images = make()
    assert family_of(model.config).packing_obstacle is None
    torch.manual_seed(0)
    counts = [2, 0, 1]
    samples = [
        torch.cat([text[:, :2], *[torch.full((1, tokens), IMAGE), text[:, 2:4]] * count, text], 1)
        for text, count in zip(drawn(7, 5, 6), counts, strict=True)
    ]
    pixels = images(sum(counts))
    grids = pixels.get("image_grid_thw")
    start, alone = 0, []
    for sample, count in zip(samples, counts, strict=True):
        own = {name: value.split(len(value) // 3) for name, value in pixels.items()}
        parts = {
            name: torch.cat(value[start : start + count]) for name, value in own.items() if count
        }
        if grids is not None:
            parts["mm_token_type_ids"] = (sample == IMAGE).long()
        alone.append(logits(model, input_ids=sample, **parts))
        start += count
    row = torch.cat(samples, dim=1)
    types = None if grids is None else (row == IMAGE).long()
    positions = Positions(model.config).of(
        [sample.shape[1] for sample in samples], counts, row, types, grids
    )
    if types is not None:
        pixels["mm_token_type_ids"] = types

    attend_by_segment(model)

    found = logits(model, input_ids=row, position_ids=positions, **pixels)
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2_vl"])
def test_answers_are_the_same_as_with_sdpa(tiny_model: Callable[[str], Path], family: str) -> None:
    auto = AutoModelForCausalLM if family == "llama" else AutoModelForImageTextToText
    model = auto.from_pretrained(tiny_model(family), dtype=torch.float32).eval()
    long, short = drawn(12, 7)
    left = torch.cat([torch.zeros(1, 5, dtype=torch.long), short], dim=1)
    batch = torch.cat([long, left])
    mask = torch.ones_like(batch)
    mask[1, :5] = 0
    asked: list[dict[str, Any]] = [
        {"input_ids": long},
        {"input_ids": long, "attention_mask": torch.ones_like(long)},
        {"input_ids": batch, "attention_mask": mask},
        {"input_ids": long, "num_beams": 3},
    ]

    def answers() -> list[Any]:
        settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
        return [model.generate(**inputs, **settings, pad_token_id=0).tolist() for inputs in asked]

    expected = answers()
    attend_by_segment(model)
    assert answers() == expected


def test_padded_rows_have_the_logits_of_sdpa(tiny_model: Callable[[str], Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32).eval()
    batch = torch.cat(drawn(9, 9))
    mask = torch.ones_like(batch)
    mask[0, 6:] = 0
    expected = logits(model, input_ids=batch, attention_mask=mask)

    attend_by_segment(model)

    assert logits(model, input_ids=batch, attention_mask=mask).equal(expected)


def test_switch_reaches_the_language_model_alone_and_goes_back(
    tiny_model: Callable[[str], Path],
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_model("qwen2_vl")).eval()

    def attention() -> tuple[str, str]:
        config = model.config
        return (
            config.get_text_config()._attn_implementation,
            config.vision_config._attn_implementation,
        )

    samples = drawn(6, 9)
    row = plain(samples)
    row["position_ids"] = row["position_ids"][None].repeat(4, 1, 1)
    expected = logits(model, **row)
    assert attention() == ("sdpa", "sdpa")

    attend_by_segment(model)
    assert attention() == (SEGMENTS, "sdpa")
    torch.testing.assert_close(logits(model, **row), expected)

    attend_by_mask(model)
    assert attention() == ("sdpa", "sdpa")
    assert logits(model, **row).equal(expected)
