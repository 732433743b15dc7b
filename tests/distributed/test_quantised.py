"""Real DeepSpeed and real bitsandbytes on two ranks: how much each holds of quantised weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM

from sailplan.files import preset
from tests.support import patience
from tests.support.launch import free_port

SCRIPT = Path(__file__).with_name("quantised_ranks.py")
NESTED = {"load_in_4bit": True, "use_bnb_nested_quant": True}
CASES: dict[str, dict[str, Any]] = {
    "nf4": NESTED,
    "nf4 as bfloat16": {**NESTED, "bnb_4bit_quant_storage": "bfloat16"},
    "int8": {"load_in_8bit": True},
}
Reports = list[dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def large_model(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A Llama of 64 MiB weights in its layers, none of them small enough to stay whole."""
    folder = tmp_path_factory.mktemp("large")
    config = AutoConfig.from_pretrained(tiny_model("llama"))
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128}
    for name, value in {**shape, **heads}.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in tiny_model("llama").glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def trained(model: Path, out: Path, strategy: str, ranks: int) -> Reports:
    """Trains all cases and returns what each rank saw."""
    out.mkdir()
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(preset(strategy)), "--num_processes", str(ranks)]
    command += ["--main_process_port", str(free_port())] if ranks > 1 else []
    command += [str(SCRIPT), str(model), str(out), json.dumps(CASES)]
    done = patience.run(command, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def zero3(large_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Reports:
    return trained(large_model, tmp_path_factory.mktemp("zero3") / "out", "deepspeed_zero3", 2)


@pytest.mark.parametrize("case", ["nf4", "nf4 as bfloat16"])
def test_zero3_rank_holds_half_of_4_bit_weights(zero3: Reports, case: str) -> None:
    for rank in zero3:
        whole = rank[case]["whole_bytes"]
        assert whole == 32 * 2**20
        for held in rank[case]["held_bytes"]:
            assert held == pytest.approx(whole / 2, rel=0.05)


def test_zero3_rank_would_hold_8_bit_weights_whole_and_its_shard_besides(zero3: Reports) -> None:
    """Why they are refused there; where this fails, bitsandbytes has let go of them."""
    for rank in zero3:
        whole = rank["int8"]["whole_bytes"]
        assert whole == 64 * 2**20
        for held in rank["int8"]["held_bytes"]:
            assert held == pytest.approx(1.5 * whole, rel=0.05)


@pytest.mark.slow
def test_zero3_computes_from_quantised_weights_what_one_process_does(
    zero3: Reports, large_model: Path, tmp_path: Path
) -> None:
    (alone,) = trained(large_model, tmp_path / "out", "single_gpu", 1)
    for rank in zero3:
        for case, expected in alone.items():
            assert rank[case]["losses"] == pytest.approx(expected["losses"], rel=1e-4)
