"""Adapters meet bases in the names of published files and in those of modules, with one result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig
from peft import get_peft_model as tune
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig

from sailplan.errors import CheckpointError
from sailplan.merge.job import Options, prepare
from sailplan.merge.output import carry_out
from sailplan.merge.verify import verify

ADAPTERS = {
    "qwen2_vl": LoraConfig(r=4, target_modules=["q_proj", "qkv", "down_proj"]),
    "llava": LoraConfig(r=4, target_modules=["q_proj", "linear_1"]),
    "mixtral": LoraConfig(
        r=2,
        target_modules=["v_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    ),
}
HUB_NAMES = {
    "qwen2_vl": "visual.blocks.0.attn.qkv.weight",
    "llava": "language_model.model.layers.0.self_attn.q_proj.weight",
    "mixtral": "model.layers.0.block_sparse_moe.experts.2.w1.weight",
}
"""Of each family, a name that no module has."""


def load(folder: Path) -> Any:
    """What from_pretrained makes of a folder, from which nothing is missing."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    found, info = getattr(transformers, architecture).from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return found


def by_modules(folder: Path, output: Path) -> Path:
    """The same model in the names and shapes of its modules."""
    model = load(folder)
    shutil.copytree(folder, output, ignore=shutil.ignore_patterns("*.safetensors*"))
    state = {n: t for n, t in model.state_dict().items() if n not in model.all_tied_weights_keys}
    save_file(state, output / "model.safetensors", {"format": "pt"})
    return output


@pytest.fixture(params=ADAPTERS)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def published(tmp_path: Path, family: str, tiny_model: Callable[[str], Path]) -> Path:
    """The family's model, in the names of its published files."""
    if family != "mixtral":
        return tiny_model(family)
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture
def adapter(tmp_path: Path, family: str, published: Path) -> Path:
    """An adapter on it, none of whose values is where it began."""
    tuned = tune(load(published), ADAPTERS[family])
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_bases_of_either_kind_of_names_give_what_peft_gives(
    tmp_path: Path, family: str, published: Path, adapter: Path
) -> None:
    assert HUB_NAMES[family] in load_file(published / "model.safetensors")
    modules = by_modules(published, tmp_path / "modules")
    assert HUB_NAMES[family] not in load_file(modules / "model.safetensors")
    expected = PeftModel.from_pretrained(load(published), adapter).merge_and_unload().state_dict()

    for number, (base, names) in enumerate(
        [(published, "hub"), (published, "module"), (modules, "hub"), (modules, "module")]
    ):
        output = tmp_path / f"out{number}"
        job = prepare(adapter, Options(base=str(base), names=names))  # type: ignore[arg-type]
        found = verify(job, output, carry_out(job, output), "full")

        assert not found.unchanged
        assert (HUB_NAMES[family] in load_file(output / "model.safetensors")) == (names == "hub")
        for name, tensor in load(output).state_dict().items():
            assert tensor.equal(expected[name]), (base.name, names, name)


OTHERS = {"qwen2_vl": "llava", "llava": "qwen2_vl", "mixtral": "llama"}


def test_adapter_of_another_family_is_an_error_and_no_copy_of_the_base(
    tmp_path: Path, family: str, adapter: Path, tiny_model: Callable[[str], Path]
) -> None:
    other = tiny_model(OTHERS[family])
    with pytest.raises(CheckpointError, match=r"the adapter"):
        carry_out(prepare(adapter, Options(base=str(other))), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PrefixTuningConfig(num_virtual_tokens=3), "a PREFIX_TUNING adapter is made of virtual"),
        (PromptTuningConfig(num_virtual_tokens=3), "a PROMPT_TUNING adapter is made of virtual"),
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "a IA3 adapter cannot be"),
    ],
    ids=["prefix", "prompt", "ia3"],
)
def test_adapter_of_another_kind_as_peft_saves_it_is_refused_by_name(
    tmp_path: Path, tiny_model: Callable[[str], Path], config: Any, message: str
) -> None:
    config.task_type = "CAUSAL_LM"
    tune(load(tiny_model("llama")), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=message):
        prepare(tmp_path / "adapter")
