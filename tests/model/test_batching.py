"""Whether samples share a row, and the words that say so."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from sailplan.errors import RunFileError
from sailplan.model.batching import choose_batching
from sailplan.model.families import Family, family_of
from sailplan.run.config import Run

SAME = "each optimizer step has the samples it would have had"
WINDOW = "a sliding window of 4096 tokens without flash-attn would need a mask of tokens × tokens"


def family(kind: str, **settings: Any) -> Family:
    return family_of(AutoConfig.for_model(kind, **settings))


@pytest.mark.parametrize(
    ("fields", "attention", "packs", "words"),
    [
        ({}, "sdpa", True, f"batching: pack; {SAME}"),
        ({}, "flash_attention_2", True, f"batching: pack; {SAME}"),
        ({}, "eager", False, "eager attention would need a mask of tokens × tokens"),
        ({"neftune_noise_alpha": 5.0}, "sdpa", False, "makes less noise in longer rows"),
        ({"neftune_noise_alpha": 5.0, "packing": True}, "sdpa", True, "(packing: true)"),
        ({"batching": "pack"}, "eager", True, f"batching: pack (batching: pack); {SAME}"),
        ({"batching": "pad"}, "sdpa", False, "batching: pad (batching: pad)"),
        ({"packing": True}, "sdpa", True, f"batching: pack (packing: true); {SAME}"),
        ({"packing": False}, "sdpa", False, "batching: pad (packing: false)"),
        ({"padding_free": True}, "sdpa", True, f"batching: pack (padding_free: true); {SAME}"),
        ({"packing": True, "batching": "pad"}, "sdpa", False, "batching: pad (batching: pad)"),
    ],
)
def test_plain_family_is_packed_unless_something_speaks_against_it(
    fields: dict[str, Any], attention: str, packs: bool, words: str
) -> None:
    chosen, said = choose_batching(Run(explicit=fields), family("llama"), attention)
    assert chosen == packs
    assert words in said


@pytest.mark.parametrize(
    ("fields", "attention", "packs", "words"),
    [
        ({}, "sdpa", False, f"batching: pad ({WINDOW})"),
        ({}, "flash_attention_2", True, f"batching: pack; {SAME}"),
        ({"batching": "pack"}, "sdpa", True, f"batching: pack (batching: pack); {SAME}"),
    ],
)
def test_sliding_window_is_packed_with_flash_attention_or_where_asked(
    fields: dict[str, Any], attention: str, packs: bool, words: str
) -> None:
    sliding = family("mistral", sliding_window=4096)
    chosen, said = choose_batching(Run(explicit=fields), sliding, attention)
    assert chosen == packs
    assert words in said


def test_family_that_cannot_be_packed_is_padded_and_says_why() -> None:
    chosen, said = choose_batching(Run(explicit={}), family("mllama"), "sdpa")
    assert not chosen
    assert said == (
        "batching: pad (mllama cannot be packed: every token of a row sees all images of the row)"
    )


@pytest.mark.parametrize("kind", ["gemma3", "molmo2", "paligemma"])
def test_family_whose_images_are_read_both_ways_is_padded(kind: str) -> None:
    chosen, said = choose_batching(Run(explicit={}), family(kind), "sdpa")
    assert not chosen
    assert "its image tokens attend to each other in both directions" in said


@pytest.mark.parametrize(
    ("fields", "by"),
    [
        ({"batching": "pack"}, "batching: pack"),
        ({"packing": True}, "packing: true"),
        ({"padding_free": True}, "padding_free: true"),
    ],
)
def test_packing_that_is_asked_for_and_cannot_be_is_refused(
    fields: dict[str, Any], by: str
) -> None:
    with pytest.raises(RunFileError) as caught:
        choose_batching(Run(explicit=fields), family("mllama"), "sdpa")
    assert str(caught.value) == (
        f"{by} for mllama: every token of a row sees all images of the row; "
        "drop it: samples of like length are then padded together"
    )
