"""Checkpoints that real training left: merged, they are what the ranks held when they saved."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from sailplan.errors import CheckpointError
from sailplan.files import preset
from sailplan.merge.job import Options, prepare, prepare_adapter
from sailplan.merge.output import carry_out
from sailplan.merge.verify import verify
from tests.support.launch import free_port

SCRIPT = Path(__file__).with_name("trained_ranks.py")
LAUNCHES = {
    ("deepspeed_zero3", 2): ["qwen2_vl:full:bf16", "tied:plain:bf16", "llama:rich:fp32"],
    ("deepspeed_zero1", 4): ["llama:full:fp32", "qwen2_vl:rich:bf16"],
}
MORE_LAUNCHES = {
    ("deepspeed_zero2", 3): ["tied:full:bf16", "qwen2_vl:plain:bf16"],
    ("deepspeed_zero3", 3): ["llama:plain:bf16"],
    ("deepspeed_zero3", 4): ["tied:plain:fp32"],
    ("deepspeed_zero2", 2): ["llama:full:fp32"],
    ("deepspeed_zero2", 4): ["qwen2_vl:rich:fp32"],
    ("deepspeed_zero1", 2): ["tied:plain:bf16", "tied:rich:bf16"],
    ("deepspeed_zero1", 3): ["llama:rich:fp32"],
}
"""With these, each stage, world size, model, method and precision meets each of the others."""


def cases(*, full: bool) -> list[Any]:
    """Those of full fine-tuning, or of adapters; what is launched beyond the first ones is slow."""
    return [
        pytest.param(*launch, case, marks=[pytest.mark.slow] if launch in MORE_LAUNCHES else [])
        for launch, names in {**LAUNCHES, **MORE_LAUNCHES}.items()
        for case in names
        if (":full:" in case) == full
    ]


FULL, TUNED = cases(full=True), cases(full=False)
Trained = Callable[[str, int, str], Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    """qwen2_vl, llama, and a llama whose head is tied."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("qwen2_vl", "llama"):
        shutil.copytree(tiny_model(name), folder / name)
    shutil.copytree(tiny_model("llama"), folder / "tied")
    config = transformers.AutoConfig.from_pretrained(folder / "tied")
    config.tie_word_embeddings = True
    torch.manual_seed(3)
    tied = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tied.save_pretrained(folder / "tied")
    assert "lm_head.weight" not in load_file(folder / "tied" / "model.safetensors")
    assert not transformers.AutoConfig.from_pretrained(folder / "llama").tie_word_embeddings
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Trained:
    """`trained(strategy, world_size, case)` is a case's folder; a launch trains several."""

    @cache
    def launched(strategy: str, world_size: int) -> Path:
        out = tmp_path_factory.mktemp(strategy)
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", str(preset(strategy)), "--num_processes", str(world_size)]
        command += ["--main_process_port", str(free_port()), str(SCRIPT), str(models), str(out)]
        command += {**LAUNCHES, **MORE_LAUNCHES}[strategy, world_size]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=os.environ)
        assert done.returncode == 0, done.stderr[-3000:]
        return out

    return lambda strategy, world, case: launched(strategy, world) / case.replace(":", "-")


def test_each_two_of_what_differs_meet() -> None:
    """Stages, world sizes, models, methods and precisions, pairwise."""
    met = [(*launch.values[:2], *str(launch.values[2]).split(":")) for launch in FULL + TUNED]
    for one, other in combinations(range(5), 2):
        pairs = {(case[one], case[other]) for case in met}
        assert pairs == set(product({c[one] for c in met}, {c[other] for c in met}))


def merge(path: Path, output: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Merges, verifies all of it, and returns what from_pretrained loads."""
    job = prepare(path, Options(**options))
    digests = carry_out(job, output)
    verify(job, output, digests, "full")
    return load(output)


def load(folder: Path) -> dict[str, torch.Tensor]:
    config = json.loads((folder / "config.json").read_text())
    architecture = getattr(transformers, config["architectures"][0])
    model, info = architecture.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert str(model.dtype) == f"torch.{config['dtype']}"
    return dict(model.state_dict())


def global_step(folder: Path) -> Path:
    return folder / "checkpoint-2" / "global_step2"


@pytest.mark.parametrize(("strategy", "world", "case"), FULL)
def test_masters_are_what_the_ranks_held(
    trained: Trained, tmp_path: Path, strategy: str, world: int, case: str
) -> None:
    folder = trained(strategy, world, case)
    expected = torch.load(folder / "expected.pt")

    for number, path in enumerate([folder / "checkpoint-2", global_step(folder)]):
        found = merge(path, tmp_path / str(number), dtype="float32")
        for name, tensor in expected.items():
            assert found[name].equal(tensor), name
        assert found.keys() - expected.keys() <= {"lm_head.weight"}


@pytest.mark.parametrize(("strategy", "world", "case"), FULL)
def test_masters_are_those_of_zero_to_fp32(
    trained: Trained, tmp_path: Path, strategy: str, world: int, case: str
) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    folder = trained(strategy, world, case)
    peer = get_fp32_state_dict_from_zero_checkpoint(str(folder / "checkpoint-2"))

    found = merge(global_step(folder), tmp_path / "out", dtype="float32")

    assert found.keys() == peer.keys() | (found.keys() & {"lm_head.weight"})
    for name, tensor in peer.items():
        assert found[name].equal(tensor), name


@pytest.mark.parametrize(("strategy", "world", "case"), FULL)
def test_default_dtype_is_what_the_model_was_trained_in(
    trained: Trained, tmp_path: Path, strategy: str, world: int, case: str
) -> None:
    folder = trained(strategy, world, case)
    expected = torch.load(folder / "expected.pt")

    found = merge(global_step(folder), tmp_path / "out")

    dtype = torch.bfloat16 if case.endswith("bf16") else torch.float32
    for name, tensor in expected.items():
        assert found[name].equal(tensor.to(dtype)), name


@pytest.mark.parametrize(("strategy", "world", "case"), FULL)
def test_names_of_the_modules_load_as_well(
    trained: Trained, tmp_path: Path, strategy: str, world: int, case: str
) -> None:
    folder = trained(strategy, world, case)
    by_module = merge(global_step(folder), tmp_path / "module", names="module")
    by_file = merge(global_step(folder), tmp_path / "hub")
    assert by_module.keys() == by_file.keys()
    assert all(by_module[name].equal(by_file[name]) for name in by_file)
    written = load_file(tmp_path / "module" / "model.safetensors").keys()
    assert written <= by_module.keys()


@pytest.mark.parametrize(("strategy", "world", "case"), TUNED)
def test_adapter_is_merged_as_peft_does(
    trained: Trained, models: Path, tmp_path: Path, strategy: str, world: int, case: str
) -> None:
    folder = trained(strategy, world, case)
    name = case.partition(":")[0]
    architecture = json.loads((models / name / "config.json").read_text())["architectures"][0]
    base = getattr(transformers, architecture).from_pretrained(models / name)
    expected = PeftModel.from_pretrained(base, folder / "checkpoint-2").merge_and_unload()

    found = merge(folder, tmp_path / "out")  # the run directory: its last checkpoint

    for own, tensor in expected.state_dict().items():
        assert found[own].equal(tensor), own


@pytest.mark.parametrize(("strategy", "world", "case"), TUNED)
def test_adapter_is_recovered_from_the_sharded_state(
    trained: Trained, tmp_path: Path, strategy: str, world: int, case: str
) -> None:
    folder = Path(shutil.copytree(trained(strategy, world, case), tmp_path / "run"))
    saved = load_file(folder / "checkpoint-2" / "adapter_model.safetensors")
    held = torch.load(folder / "expected.pt")
    save_file({}, folder / "checkpoint-2" / "adapter_model.safetensors")  # as ZeRO-3 once did
    with pytest.raises(CheckpointError, match="sailplan recover-adapter"):
        prepare(folder / "checkpoint-2")

    carry_out(prepare_adapter(folder / "checkpoint-2"), tmp_path / "same")
    carry_out(prepare_adapter(folder / "checkpoint-2", "float32"), tmp_path / "masters")

    same = load_file(tmp_path / "same" / "adapter_model.safetensors")
    masters = load_file(tmp_path / "masters" / "adapter_model.safetensors")
    assert same.keys() == masters.keys() == saved.keys()
    dtype = torch.bfloat16 if case.endswith("bf16") else torch.float32
    for name, tensor in same.items():
        assert tensor.to(saved[name].dtype).equal(saved[name].to(dtype).to(saved[name].dtype)), name
        module, _, part = name.removesuffix(".weight").rpartition(".")
        own = f"{module}.{part}.default.weight"
        kept = f"{module}.{part}.modules_to_save.default.weight"
        assert masters[name].equal(held[own] if own in held else held[kept]), name
    merged = prepare(tmp_path / "same")
    assert merged.adapter is not None
