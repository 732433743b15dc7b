"""Names and shapes of files become those of modules and come back, by transformers' own rules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    MixtralConfig,
    Qwen2MoeConfig,
    Qwen3VLMoeConfig,
)

from sailplan.checkpoint import hub_folder
from sailplan.errors import CheckpointError
from sailplan.merge import names
from sailplan.merge.tensor_plan import TensorPlan, prove
from sailplan.model.skeleton import skeleton
from tests.merge.planned import values
from tests.support.tiny import FAMILIES, MORE_FAMILIES

_SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 50,
    "num_experts": 3,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
}


def _mixture(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "mixtral":
        return AutoModelForCausalLM.from_config(MixtralConfig(**_SMALL))
    if kind == "qwen2_moe":
        return AutoModelForCausalLM.from_config(Qwen2MoeConfig(**_SMALL))
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "depth": 2,
        "num_heads": 2,
        "out_hidden_size": 16,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    text = {
        **_SMALL,
        "head_dim": 8,
        "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]},
    }
    return AutoModelForImageTextToText.from_config(
        Qwen3VLMoeConfig(text_config=text, vision_config=vision)
    )


EXPERTS = ("mixtral", "qwen2_moe", "qwen3_vl_moe")


@pytest.fixture
def folder(
    request: pytest.FixtureRequest, tiny_model: Callable[[str], Path], tmp_path: Path
) -> Path:
    """A model of the family, in the names of its published files."""
    if request.param in EXPERTS:
        _mixture(request.param).save_pretrained(tmp_path)
        return tmp_path
    return tiny_model(request.param)


def plans_in(folder: Path) -> list[TensorPlan]:
    return [
        TensorPlan(name=name, dtype=tensor.dtype, source=tensor.pieces())
        for name, tensor in hub_folder.read(folder).items()
    ]


def loaded(folder: Path) -> Any:
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    import transformers

    return getattr(transformers, architecture).from_pretrained(folder)


ALL = pytest.mark.parametrize("folder", [*FAMILIES, *MORE_FAMILIES, *EXPERTS], indirect=True)


@ALL
def test_files_become_what_from_pretrained_loads(folder: Path) -> None:
    model = loaded(folder)
    expected = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in model.all_tied_weights_keys
    }

    made = names.to_modules(plans_in(folder), skeleton(folder))

    prove(made)
    assert [plan.name for plan in made] == list(expected)
    for plan in made:
        assert values(plan).equal(expected[plan.name]), plan.name


@ALL
def test_modules_become_the_files_again(folder: Path) -> None:
    model, files = skeleton(folder), plans_in(folder)

    made = names.to_hub(names.to_modules(files, model), model)

    assert {plan.name: plan for plan in made} == {plan.name: plan for plan in files}


@ALL
def test_names_of_modules_alone_become_those_of_the_files(folder: Path) -> None:
    files = plans_in(folder)
    trained = names.to_modules(files, skeleton(folder))
    model = skeleton(folder)

    again = names.to_modules(trained, model)
    made = names.to_hub(again, model)

    assert again == trained
    assert {plan.name: plan for plan in made} == {plan.name: plan for plan in files}


def test_files_of_experts_are_one_per_expert_and_matrix(tmp_path: Path) -> None:
    _mixture("mixtral").save_pretrained(tmp_path)
    found = {plan.name for plan in plans_in(tmp_path)}
    assert "model.layers.0.block_sparse_moe.experts.2.w1.weight" in found
    made = names.to_modules(plans_in(tmp_path), skeleton(tmp_path))
    assert "model.layers.0.mlp.experts.gate_up_proj" in {plan.name for plan in made}


@pytest.mark.parametrize("folder", ["qwen2_vl"], indirect=True)
def test_missing_weight_is_refused(folder: Path) -> None:
    plans = [plan for plan in plans_in(folder) if plan.name != "visual.blocks.0.norm1.weight"]
    with pytest.raises(CheckpointError, match=r"1 weights .* missing, such as model\.visual\.blo"):
        names.to_modules(plans, skeleton(folder))


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_foreign_tensor_is_refused_with_the_nearest_name(folder: Path) -> None:
    plans = plans_in(folder)
    foreign = TensorPlan(
        name="model.layers.0.mlp.gate.weight", dtype="float32", source=plans[0].source
    )
    with pytest.raises(CheckpointError, match=r"gate\.weight \(the nearest name is model\.layers"):
        names.to_modules([*plans, foreign], skeleton(folder))


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_buffer_of_older_versions_is_left_out(folder: Path) -> None:
    plans = plans_in(folder)
    former = TensorPlan(
        name="model.layers.0.self_attn.rotary_emb.inv_freq",
        dtype="float32",
        source=plans[0].source,
    )
    made = names.to_modules([*plans, former], skeleton(folder))
    assert len(made) == len(plans)
