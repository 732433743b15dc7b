"""Real DeepSpeed on two ranks: how models load, and what the gradient guard sees."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from sailplan.files import preset
from tests.support import patience

SCRIPT = Path(__file__).with_name("zero_ranks.py")


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 72 MiB parameters, 288 MiB: its size stands out from the process's own."""
    folder = tmp_path_factory.mktemp("large")
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
    config = LlamaConfig(vocab_size=4096, num_attention_heads=8, tie_word_embeddings=True, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def launch(strategy: str, *arguments: object) -> list[dict[str, Any]]:
    """Runs the script on two ranks and returns what each of them saw."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(preset(strategy)), "--num_processes", "2"]
    command += ["--main_process_port", "0", str(SCRIPT), *map(str, arguments)]
    # Large blocks go back to the system when freed, so that the peak is what is really held.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = patience.run(command, timeout=240, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((Path(str(arguments[2])) / f"rank{n}.json").read_text()) for n in (0, 1)]


@pytest.fixture(scope="module")
def ranks_under(
    tiny_model: Callable[[str], Path], large_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[dict[str, Any]]]:
    """`ranks_under("deepspeed_zero2")` is what each rank saw; the launch happens once."""

    @cache
    def run(strategy: str) -> list[dict[str, Any]]:
        phases = ["full", "adapter"] + ["load"] * (strategy == "deepspeed_zero3")
        out = tmp_path_factory.mktemp("out")
        return launch(strategy, tiny_model("llava"), large_model, out, *phases)

    return run


STRATEGIES = pytest.mark.parametrize(
    "strategy", [pytest.param("deepspeed_zero2", marks=pytest.mark.slow), "deepspeed_zero3"]
)
Ranks = Callable[[str], list[dict[str, Any]]]


@STRATEGIES
def test_zero_guard_waits_for_what_deepspeed_has_no_gradient_of(
    ranks_under: Ranks, strategy: str
) -> None:
    for rank in ranks_under(strategy):
        assert rank["full"]["waiting"][0] == rank["full"]["never"][0]
        assert len(rank["full"]["never"][0]) == 18  # LLaVA's last CLIP layer and its norm.
        assert rank["adapter"]["waiting"] == rank["adapter"]["never"]
        assert {name.split(".")[-3] for name in rank["adapter"]["never"][0]} == {"lora_A"}
        assert rank["adapter"]["never"][1:] == [[], []]


@STRATEGIES
def test_zero_guard_stops_all_ranks_with_the_same_names(ranks_under: Ranks, strategy: str) -> None:
    first, second = ranks_under(strategy)

    dead = first["full"]["never"][-1]
    assert f"no gradient in 2 optimizer steps: {dead[0]}, {dead[1]}" in first["full"]["error"]
    assert second["full"]["error"] == first["full"]["error"]
    assert first["adapter"]["error"] == second["adapter"]["error"] == ""


def test_zero3_no_rank_ever_holds_the_whole_model(ranks_under: Ranks) -> None:
    for rank in ranks_under("deepspeed_zero3"):
        loaded = rank["load"]
        assert loaded["held"] == 0
        assert loaded["full_bytes"] > 256 * 2**20
        # Half the model is this rank's shard; the rest of it never comes together.
        assert loaded["full_bytes"] / 2 < loaded["peak_bytes"] < loaded["full_bytes"]
        assert f"all params: {loaded['full_bytes'] // 4:,} " in loaded["described"]


def test_zero3_quantised_weights_are_partitioned_before_the_first_step(ranks_under: Ranks) -> None:
    # They load whole, packed, on each rank: transformers cannot quantise under zero.Init.
    for rank in ranks_under("deepspeed_zero3"):
        assert rank["adapter"]["whole"] == []
