"""Which attention runs, and the reason that is printed with it."""

from __future__ import annotations

import importlib.util
import re

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers import (
    Gemma3Config,
    LlamaConfig,
    LlamaForCausalLM,
    MllamaForConditionalGeneration,
    PaliGemmaConfig,
    PreTrainedModel,
)

from sailplan.errors import RunFileError
from sailplan.model.attention import choose_attention
from sailplan.model.families import family_of
from tests.model.test_precision import CPU, H100, V100

INSTALLED = importlib.util.find_spec("flash_attn") is not None


class NoSdpa(PreTrainedModel):
    """A model whose layers know neither flash-attention nor sdpa."""


def choose(requested: str | None, **changes: object) -> tuple[str, str]:
    facts = {"model_class": LlamaForCausalLM, "device": H100, "half_precision": True}
    facts["family"] = family_of(LlamaConfig())
    return choose_attention(requested, **{**facts, **changes})  # type: ignore[arg-type]


def test_attention_written_is_taken_as_it_is() -> None:
    assert choose("eager", device=CPU) == ("eager", "written in the run file")


@pytest.mark.parametrize("requested", [None, "auto"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": CPU}, "it needs a GPU"),
        ({"device": V100}, "Tesla V100 is older than Ampere"),
        ({"half_precision": False}, "trains in fp32"),
        ({"model_class": MllamaForConditionalGeneration}, "Mllama.* does not support it"),
    ],
)
def test_attention_where_flash_cannot_run_is_sdpa_and_says_why(
    requested: str | None, changes: dict[str, object], reason: str
) -> None:
    choice, why = choose(requested, **changes)

    assert choice == "sdpa"
    assert re.search(reason, why)


def test_attention_where_flash_could_run_depends_on_its_installation() -> None:
    choice, why = choose("auto")

    expected = ("flash_attention_2", "NVIDIA H100") if INSTALLED else ("sdpa", "not installed")
    assert choice == expected[0]
    assert expected[1] in why


@pytest.mark.parametrize("config", [PaliGemmaConfig(), Gemma3Config()], ids=["pali", "gemma3"])
def test_attention_of_images_that_are_seen_both_ways_is_never_flash(config: object) -> None:
    family = family_of(config)
    assert choose("auto", family=family)[0] == "sdpa"
    assert "in both directions" in choose("auto", family=family)[1]
    assert choose("eager", family=family)[0] == "eager"
    with pytest.raises(RunFileError, match=f"for {family.name}: .* flash-attention has no mask"):
        choose("flash_attention_2", family=family)


def test_attention_of_a_model_without_sdpa_is_eager() -> None:
    choice, why = choose("auto", model_class=NoSdpa, device=CPU)

    assert choice == "eager"
    assert "does not support sdpa" in why


def test_flex_attention_has_no_backward_on_a_cpu() -> None:
    query = torch.zeros(1, 1, 8, 16, requires_grad=True)

    with pytest.raises(NotImplementedError, match="backward on CPU"):
        flex_attention(query, query, query)
