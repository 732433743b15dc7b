"""Merged adapters equal PEFT's own `merge_and_unload()`, bit for bit, in every kind there is."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedModel,
)

from sailplan.checkpoint import adapter_folder, hub_folder
from sailplan.errors import CheckpointError
from sailplan.merge import stream
from sailplan.merge.adapter import Applied, apply
from sailplan.merge.reader import Reader
from sailplan.merge.recompute import recompute
from sailplan.merge.stream import compute
from sailplan.merge.tensor_plan import Shard, TensorPlan, prove, prove_used_up

LLAMA = LlamaConfig(
    vocab_size=131,
    hidden_size=48,
    intermediate_size=75,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    attention_bias=True,
    tie_word_embeddings=False,
)
MIXTRAL = MixtralConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=44,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_local_experts=3,
    num_experts_per_tok=2,
)
GPT2 = GPT2Config(vocab_size=90, n_positions=32, n_embd=24, n_layer=2, n_head=2)


class Convolutions(nn.Module):
    """Stands for a model: PEFT knows no convolution in the models that we test otherwise."""

    all_tied_weights_keys: dict[str, str] = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 10, 3)
        self.point = nn.Conv2d(10, 6, 1)
        self.line = nn.Conv1d(6, 5, 3)
        self.cube = nn.Conv3d(3, 7, (2, 3, 3))


def linear(**settings: Any) -> LoraConfig:
    return LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], r=5, **settings)


KINDS: dict[str, tuple[Any, LoraConfig]] = {
    "plain": (LLAMA, linear(lora_alpha=7, task_type="CAUSAL_LM")),
    "all linear": (LLAMA, LoraConfig(target_modules="all-linear", r=3, lora_alpha=16)),
    "rslora": (LLAMA, linear(use_rslora=True)),
    "patterns": (
        LLAMA,
        linear(
            rank_pattern={"layers.1.self_attn.q_proj": 2, r".*\.down_proj": 7},
            alpha_pattern={"v_proj": 3},
        ),
    ),
    "dora": (LLAMA, linear(use_dora=True)),
    "dora rslora": (LLAMA, linear(use_dora=True, use_rslora=True)),
    "lora bias": (LLAMA, LoraConfig(target_modules=["q_proj", "k_proj"], lora_bias=True)),
    "bias lora_only": (LLAMA, LoraConfig(target_modules=["q_proj"], bias="lora_only")),
    "bias all": (LLAMA, LoraConfig(target_modules=["q_proj"], bias="all")),
    "embedding": (LLAMA, LoraConfig(target_modules=["embed_tokens", "q_proj"], r=4)),
    "modules to save": (LLAMA, linear(modules_to_save=["lm_head", "input_layernorm"])),
    "tokens": (LLAMA, linear(trainable_token_indices={"embed_tokens": [130, 3, 64]})),
    "tokens of both": (
        LLAMA,
        linear(trainable_token_indices={"embed_tokens": [5, 1], "lm_head": [7]}),
    ),
    "fan in fan out": (GPT2, LoraConfig(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "experts": (
        MIXTRAL,
        LoraConfig(
            target_modules=["q_proj"],
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
            r=3,
        ),
    ),
    "one parameter": (
        MIXTRAL,
        LoraConfig(target_parameters=["mlp.experts.down_proj"], target_modules=[], r=2),
    ),
    "router": (
        MIXTRAL,
        LoraConfig(target_parameters=["mlp.gate.weight"], target_modules=["v_proj"], r=2),
    ),
    "convolutions": (
        Convolutions,
        LoraConfig(target_modules=["wide", "point", "line", "cube"], r=2),
    ),
}
DTYPES = ("bfloat16", "float32", "float16")


def build(model: Any, dtype: str = "float32") -> Any:
    torch.manual_seed(0)
    if model is Convolutions:
        made: Any = model()
    else:  # a copy, which a model may change
        made = AutoModelForCausalLM.from_config(copy.deepcopy(model))
    return made.to(getattr(torch, dtype))


def tune(base: Any, config: LoraConfig, folder: Path, dtype: str = "float32") -> None:
    """Saves an adapter as if it had been trained: none of its values is where it began."""
    tuned = get_peft_model(base, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    tuned.to(getattr(torch, dtype)).save_pretrained(folder)


def as_plans(base: Any, folder: Path, dtype: str | None = None) -> list[TensorPlan]:
    """Writes a base under the names of its modules, each of tied weights once, and plans it."""
    tied = getattr(base, "all_tied_weights_keys", {})
    tensors = {name: t.contiguous() for name, t in base.state_dict().items() if name not in tied}
    save_file(tensors, folder / "model.safetensors")
    found = hub_folder.read(folder)
    return [
        TensorPlan(name=name, dtype=dtype or found[name].dtype, source=found[name].pieces())
        for name in tensors
    ]


def merged(plans: list[TensorPlan]) -> dict[str, torch.Tensor]:
    """What would be written, computed in the chunks in which it would be."""
    values: dict[str, torch.Tensor] = {}
    with Reader() as reader:
        for plan in plans:
            _, parts = stream.chunks(Shard(name="x", tensors=(plan,)))
            content = b"".join(bytes(compute(part, reader)) for part in parts)
            dtype = getattr(torch, plan.dtype)
            flat = torch.frombuffer(bytearray(content), dtype=dtype)
            values[plan.name] = flat.view(plan.shape)
    return values


def by_peft(base: Any, adapter: Path) -> dict[str, torch.Tensor]:
    return PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()


def put_on(adapter: Path, plans: list[TensorPlan], model: Any) -> Applied:
    read = adapter_folder.read(adapter)
    made = apply(read, plans, model)
    prove(made.plans)
    prove_used_up(made.plans, read.tensors)
    return made


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each weight is computed in many chunks, of few rows."""
    monkeypatch.setattr(stream, "CHUNK_BYTES", 1500)


def on_meta(model: Any) -> Any:
    with torch.device("meta"):
        return model() if model is Convolutions else AutoModelForCausalLM.from_config(model)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_merge_equals_pefts_bit_for_bit(tmp_path: Path, kind: str, dtype: str) -> None:
    model, config = KINDS[kind]
    if kind == "convolutions" and dtype == "float16":
        dtype = "float32"  # PEFT's own convolution knows no half precision on CPUs
    tune(build(model, dtype), config, tmp_path / "adapter")
    plans = as_plans(build(model, dtype), tmp_path)

    made = put_on(tmp_path / "adapter", plans, on_meta(model))

    assert not made.untied
    expected = by_peft(build(model, dtype), tmp_path / "adapter")
    changed = 0
    for name, values in merged(list(made.plans)).items():
        assert values.equal(expected[name]), name
        changed += not values.equal(build(model, dtype).state_dict()[name])
    assert changed >= 2


@pytest.mark.parametrize("kind", ["plain", "dora", "embedding", "tokens", "experts"])
def test_adapter_in_half_precision_is_merged_as_peft_does(tmp_path: Path, kind: str) -> None:
    model, config = KINDS[kind]
    tune(build(model, "bfloat16"), config, tmp_path / "adapter", dtype="bfloat16")
    plans = as_plans(build(model, "bfloat16"), tmp_path)

    made = put_on(tmp_path / "adapter", plans, on_meta(model))

    expected = by_peft(build(model, "bfloat16"), tmp_path / "adapter")
    for name, values in merged(list(made.plans)).items():
        assert values.equal(expected[name]), name


def test_wider_output_is_what_peft_makes_of_a_wider_base(tmp_path: Path) -> None:
    tune(build(LLAMA), linear(), tmp_path / "adapter")
    plans = as_plans(build(LLAMA, "bfloat16"), tmp_path, dtype="float32")

    made = put_on(tmp_path / "adapter", plans, on_meta(LLAMA))

    wide = build(LLAMA, "bfloat16").float()
    expected = by_peft(wide, tmp_path / "adapter")
    for name, values in merged(list(made.plans)).items():
        assert values.equal(expected[name]), name


@pytest.mark.parametrize("kind", [name for name in KINDS if "tokens" not in name])
def test_recomputing_by_peft_agrees(tmp_path: Path, kind: str) -> None:
    model, config = KINDS[kind]
    tune(build(model), config, tmp_path / "adapter")
    base = build(model)
    plans = as_plans(base, tmp_path)
    made = put_on(tmp_path / "adapter", plans, on_meta(model))
    values, again = merged(list(made.plans)), 0
    for plan in made.plans:
        if plan.delta is not None and not plan.name.endswith("bias"):
            weight = base.state_dict()[plan.name]
            found = recompute(tmp_path / "adapter", on_meta(model), plan.name, weight)
            assert found is not None
            assert found.equal(values[plan.name]), plan.name
            again += 1
    assert again


TIED = LlamaConfig(**{**LLAMA.to_dict(), "tie_word_embeddings": True})


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(20).view(2, 10)).logits


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_tied_weight_that_changed_alone_is_untied_and_computes_what_was_trained(
    tmp_path: Path, target: str
) -> None:
    config = LoraConfig(target_modules=[target, "q_proj"], r=4)
    tune(build(TIED), config, tmp_path / "adapter")
    plans = as_plans(build(TIED), tmp_path)

    made = put_on(tmp_path / "adapter", plans, on_meta(TIED))

    assert made.untied == ["lm_head.weight"]
    model = build(LLAMA)
    model.load_state_dict(merged(list(made.plans)))
    trained = PeftModel.from_pretrained(build(TIED), tmp_path / "adapter")
    torch.testing.assert_close(logits(model), logits(trained), atol=1e-5, rtol=1e-5)


def test_tokens_of_tied_weights_stay_tied(tmp_path: Path) -> None:
    tune(build(TIED), linear(trainable_token_indices=[4, 9]), tmp_path / "adapter")
    made = put_on(tmp_path / "adapter", as_plans(build(TIED), tmp_path), on_meta(TIED))
    assert not made.untied
    expected = by_peft(build(TIED), tmp_path / "adapter")
    for name, values in merged(list(made.plans)).items():
        assert values.equal(expected[name]), name


def test_added_tokens_bring_their_rows(tmp_path: Path) -> None:
    grown = build(LLAMA)
    grown.resize_token_embeddings(133)
    rows = {"embed_tokens": [131, 132], "lm_head": [131, 132]}
    tune(grown, linear(trainable_token_indices=rows), tmp_path / "adapter")
    adapter = tmp_path / "adapter" / "adapter_model.safetensors"
    kept = {k: v for k, v in load_file(adapter).items() if "base_layer" not in k}
    save_file({k: v for k, v in kept.items() if "lora" in k or "delta" in k}, adapter)

    made = put_on(tmp_path / "adapter", as_plans(build(LLAMA), tmp_path), on_meta(LLAMA))

    values = merged(list(made.plans))
    names = {"model.embed_tokens.weight": "embed_tokens", "lm_head.weight": "lm_head"}
    for name, short in names.items():
        assert values[name][:131].equal(build(LLAMA).state_dict()[name])
        (key,) = (key for key in kept if f".{short}.token_adapter" in key)
        assert values[name][131:].equal(kept[key])


def test_vision_model_is_merged_by_the_names_of_its_modules(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    folder = tiny_model("qwen2_vl")
    load = AutoModelForImageTextToText.from_pretrained
    config = LoraConfig(target_modules=["q_proj", "qkv", "proj"], r=4)
    tune(load(folder), config, tmp_path / "adapter")
    loaded = load(folder).config
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(loaded)

    made = put_on(tmp_path / "adapter", as_plans(load(folder), tmp_path), model)

    expected = by_peft(load(folder), tmp_path / "adapter")
    for name, values in merged(list(made.plans)).items():
        assert values.equal(expected[name]), name


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    tune(build(LLAMA), linear(), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_adapter_of_another_model_is_refused_with_the_nearest_name(
    tmp_path: Path, adapter: Path
) -> None:
    plans, model = as_plans(build(GPT2), tmp_path), on_meta(GPT2)
    with pytest.raises(CheckpointError, match=r"q_proj\.weight, which the base lacks|down_proj"):
        put_on(adapter, plans, model)


def test_adapter_of_another_size_is_refused(tmp_path: Path, adapter: Path) -> None:
    other = LlamaConfig(**{**LLAMA.to_dict(), "intermediate_size": 80})
    with pytest.raises(CheckpointError, match=r"makes a weight of \(48, 75\), .* is \(48, 80\)"):
        put_on(adapter, as_plans(build(other), tmp_path), on_meta(other))


def test_half_an_adapter_is_refused(tmp_path: Path, adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks what belongs to it \(lora_A, lora_B\)"):
        put_on(adapter, as_plans(build(LLAMA), tmp_path), on_meta(LLAMA))


REFUSED = {
    "prefix": ({"peft_type": "PREFIX_TUNING"}, "a PREFIX_TUNING adapter is made of virtual tokens"),
    "prompt": ({"peft_type": "PROMPT_TUNING"}, "a PROMPT_TUNING adapter is made of virtual"),
    "p-tuning": ({"peft_type": "P_TUNING"}, "a P_TUNING adapter is made of virtual tokens"),
    "ia3": ({"peft_type": "IA3"}, "a IA3 adapter cannot be merged here"),
    "loha": ({"peft_type": "LOHA"}, "a LOHA adapter cannot be merged here"),
    "vera": ({"peft_type": "VERA"}, "a VERA adapter cannot be merged here"),
    "alora": ({"alora_invocation_tokens": [1]}, "aLoRA acts from a token on"),
    "arrow": ({"arrow_config": {"top_k": 1}}, "Arrow chooses among adapters"),
    "megatron": ({"megatron_config": {"a": 1}}, "Megatron's parallel layers"),
    "replication": ({"layer_replication": [[0, 2]]}, "the base's layers were replicated"),
    "pissa": ({"init_lora_weights": "pissa_niter_16"}, "began with pissa_niter_16, which changes"),
    "olora": ({"init_lora_weights": "olora"}, "began with olora, which changes"),
    "corda": ({"init_lora_weights": "corda"}, "began with corda, which changes"),
    "loftq": ({"init_lora_weights": "loftq"}, "began with loftq, which changes"),
    "lora_ga": ({"init_lora_weights": "lora_ga"}, "began with lora_ga, which changes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_kind_that_cannot_be_merged_is_refused_by_name(
    tmp_path: Path, adapter: Path, name: str
) -> None:
    settings, message = REFUSED[name]
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(CheckpointError, match=message):
        put_on(adapter, as_plans(build(LLAMA), tmp_path), on_meta(LLAMA))


def test_stub_is_refused_with_its_remedy(tmp_path: Path, adapter: Path) -> None:
    save_file({}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"of \d+ bytes holds no tensors; the weights were"):
        adapter_folder.read(adapter)
    empty = {"base_model.model.lm_head.lora_A.weight": torch.empty(0)}
    save_file(empty, adapter / "adapter_model.safetensors")
    (adapter / "global_step3").mkdir()
    (adapter / "global_step3" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    with pytest.raises(CheckpointError, match=r"1 empty tensors, .*sailplan recover-adapter"):
        adapter_folder.read(adapter)
