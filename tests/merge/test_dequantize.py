"""A QLoRA adapter on the base as it was quantised: what bitsandbytes loads, and PEFT's delta."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LlamaConfig

from sailplan.errors import CheckpointError
from sailplan.merge import stream
from sailplan.merge.job import Job, Options, prepare
from sailplan.merge.output import carry_out
from sailplan.merge.verify import verify
from sailplan.model.load import quantization_config
from sailplan.run.config import Run

RUNS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4 nested": {"load_in_4bit": True, "use_bnb_nested_quant": True},
    "fp4 nested": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4",
        "use_bnb_nested_quant": True,
    },
    "int8": {"load_in_8bit": True},
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A Llama in bf16, whose layers are larger than a block of nested scales."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16),
        LoraConfig(r=4, target_modules=["q_proj", "down_proj"]),
    )
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    tuned.save_pretrained(tmp_path / "run" / "adapter")
    return tmp_path / "run" / "adapter"


def write_run(adapter: Path, base: Path, settings: dict[str, Any]) -> Run:
    fields = {
        "model_name_or_path": str(base),
        "dataset_name": "rows.jsonl",
        "use_peft": True,
        "dtype": "bfloat16",
        **settings,
    }
    (adapter.parent / "run.yaml").write_text(yaml.safe_dump(fields))
    return Run.from_file(adapter.parent / "run.yaml")


def merge(path: Path, output: Path) -> tuple[Job, dict[str, torch.Tensor]]:
    """Merges as the base was quantised; PEFT makes the same of what bitsandbytes makes of it."""
    job = prepare(path, Options(base_precision="dequantized"))
    found = verify(job, output, carry_out(job, output), "full")
    assert (found.targets, found.unchanged) == (4, [])
    assert found.recomputed >= found.targets
    return job, load_file(output / "model.safetensors")


def seen_by(layer: Any) -> torch.Tensor:
    """The weight that a quantised layer computes with."""
    weight = layer.weight
    if type(layer).__name__ == "Linear4bit":
        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    return bitsandbytes.functional.int8_vectorwise_dequant(weight.CB, weight.SCB).bfloat16()


@pytest.mark.parametrize("kind", RUNS)
def test_base_is_what_bitsandbytes_computes_with(
    tmp_path: Path, base: Path, adapter: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHUNK_BYTES", 128 * 16 * 2)
    run = write_run(adapter, base, RUNS[kind])
    config = quantization_config(run, torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=config, dtype=torch.bfloat16
    )

    _, found = merge(adapter, tmp_path / "out")

    deltas = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), adapter
    )
    checked = {"plain": 0, "tuned": 0}
    for name, layer in loaded.named_modules():
        if type(layer).__name__ not in ("Linear4bit", "Linear8bitLt"):
            continue
        expected = seen_by(layer)
        tuned = deltas.get_submodule(f"base_model.model.{name}")
        if hasattr(tuned, "get_delta_weight"):
            expected = (expected.float() + tuned.get_delta_weight("default")).bfloat16()
        checked["tuned" if hasattr(tuned, "get_delta_weight") else "plain"] += 1
        assert found[f"{name}.weight"].equal(expected), name
    assert checked == {"plain": 10, "tuned": 4}
    kept = load_file(base / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert found[name].equal(kept[name])


def test_rows_that_are_not_whole_blocks_are_verified_as_well(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    assert model.model.layers[0].mlp.down_proj.in_features % 64
    tuned = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    tuned.save_pretrained(tmp_path / "run" / "adapter")
    write_run(tmp_path / "run" / "adapter", tiny_model("llama"), RUNS["nf4 nested"])

    _, found = merge(tmp_path / "run" / "adapter", tmp_path / "out")

    for name, weight in load_file(tiny_model("llama") / "model.safetensors").items():
        if name.endswith("up_proj.weight"):  # quantised and not adapted
            assert 0 < (found[name] - weight).abs().max() < 0.2 * weight.abs().max()


def test_base_that_was_loaded_wider_than_stored_is_verified_as_well(
    tmp_path: Path, base: Path, adapter: Path
) -> None:
    write_run(adapter, base, {**RUNS["nf4 nested"], "dtype": "float32"})
    _, found = merge(adapter, tmp_path / "out")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_merge_into_the_published_base_tells_that_training_saw_another(
    base: Path, adapter: Path, kind: str
) -> None:
    assert not [note for note in prepare(adapter).notes if "quantised base" in note]
    write_run(adapter, base, {})
    assert not [note for note in prepare(adapter).notes if "quantised base" in note]
    (adapter.parent / "run.yaml").write_text("load_in_4bit: true\nof another version: 1\n")
    assert not [note for note in prepare(adapter).notes if "quantised base" in note]

    write_run(adapter, base, RUNS[kind])
    (note,) = [note for note in prepare(adapter).notes if "quantised base" in note]
    assert "--base-precision dequantized" in note


def test_share_of_the_error_is_told(tmp_path: Path, base: Path, adapter: Path) -> None:
    write_run(adapter, base, RUNS["nf4"])
    job, _ = merge(adapter, tmp_path / "out")
    (note,) = [note for note in job.notes if "quantising the base" in note]
    assert 0.01 < float(note.split(" it ")[1].split(" times")[0]) < 100


def test_run_that_did_not_quantise_is_refused(tmp_path: Path, base: Path, adapter: Path) -> None:
    write_run(adapter, base, {})
    with pytest.raises(CheckpointError, match=r"run\.yaml did not quantise its base"):
        merge(adapter, tmp_path / "out")


def test_vision_model_is_quantised_where_transformers_does(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    source = tiny_model("qwen2_vl")
    load = AutoModelForImageTextToText.from_pretrained
    tuned = get_peft_model(load(source), LoraConfig(r=2, target_modules=["q_proj"]))
    tuned.save_pretrained(tmp_path / "adapter")
    config = quantization_config(Run(explicit={"load_in_4bit": True}), torch.bfloat16)
    loaded = load(source, quantization_config=config, dtype=torch.bfloat16)
    kinds = {n: type(m).__name__ for n, m in loaded.named_modules()}

    job = prepare(tmp_path / "adapter", Options(base_precision="dequantized", names="module"))

    quantised = {p.name for p in job.plans if type(p.delta).__name__ == "Quantised"}
    assert quantised == {f"{n}.weight" for n, kind in kinds.items() if kind == "Linear4bit"}


def test_base_that_is_stored_quantised_is_refused(tmp_path: Path, base: Path) -> None:
    config = quantization_config(Run(explicit={"load_in_4bit": True}), torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(base, quantization_config=config)
    loaded.save_pretrained(tmp_path / "stored")
    with pytest.raises(CheckpointError, match=r"is stored quantised \(bitsandbytes\); name the 16"):
        prepare(tmp_path / "stored")
