"""The bytes of weights, gradients and optimizer are those that DeepSpeed and bitsandbytes keep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM

from sailplan.plan.cost.memory import shard
from sailplan.plan.sharding import Sharding
from sailplan.plan.simulation.simulate import simulate
from sailplan.plan.workload import Adapter, Workload
from tests.plan.tiny import CONFIG

SCRIPT = Path(__file__).with_name("zero_bytes_ranks.py")
RANKS = 2


def workload(**changes: Any) -> Workload:
    """The micro batch that the ranks trained."""
    plain = {"micro_batch": 1, "length_tokens": 16, "weights": "bfloat16", "loss": "full"}
    return Workload(config=CONFIG.to_dict(), **{**plain, **changes})


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, int]]]:
    """What each rank held under each stage."""
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(RANKS)]
    command += ["--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    env = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*command, str(SCRIPT), str(out)], capture_output=True, text=True, timeout=240, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("kind", ["parameters", "gradients", "optimizer"])
def test_shard_counts_what_deepspeed_keeps(
    held: list[dict[str, dict[str, int]]], strategy: Any, kind: str
) -> None:
    planned = workload()
    profile = simulate(planned)
    memory = shard(profile, planned, Sharding(strategy=strategy, ranks=RANKS, ranks_per_node=RANKS))
    predicted = memory.phases["step"][kind]
    if kind == "parameters":
        predicted -= profile.buffer_bytes
    tensors = sum(len(group.trained_tensors) for group in profile.groups)
    bytes_each = {"parameters": 2, "gradients": 2, "optimizer": 12}[kind]
    # each tensor, or the whole of them, is filled up to a multiple of the ranks
    padding = bytes_each * (tensors if strategy == "zero3" else 2 * RANKS)
    for rank in held:
        assert predicted - padding <= rank[strategy][kind] <= predicted + padding


@pytest.mark.parametrize("double", [True, False], ids=["double", "plain"])
def test_profile_counts_what_bitsandbytes_packs(tmp_path: Path, double: bool) -> None:
    LlamaForCausalLM(CONFIG).to(torch.bfloat16).save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double
    )
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=settings, dtype=torch.bfloat16
    )
    real = 0
    for parameter in model.parameters():
        real += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        for tensor in [] if state is None else state.as_dict(packed=False).values():
            real += tensor.numel() * tensor.element_size() if torch.is_tensor(tensor) else 0
        real += 4 if state is not None and state.nested else 0  # the offset, a number by then

    profile = simulate(
        workload(
            quantization="nf4",
            double_quantization=double,
            adapter=Adapter(rank=4, targets=("q_proj",)),
        )
    )
    assert sum(group.frozen_bytes for group in profile.groups) == pytest.approx(real, rel=1e-3)


def test_profile_counts_the_states_of_eight_bit_optimizers() -> None:
    from bitsandbytes.optim import AdamW8bit, GlobalOptimManager

    from sailplan.plan.cost.optimizers import state_bytes

    # Another test's trainer may have told it which parameters keep 32 bits.
    GlobalOptimManager.get_instance().initialize()
    layer = torch.nn.Linear(256, 64, bias=False)
    optimizer = AdamW8bit(layer.parameters())
    layer(torch.ones(1, 256)).sum().backward()
    optimizer.step()
    kept = [state for of_one in optimizer.state.values() for state in of_one.values()]
    large = [s for s in kept if torch.is_tensor(s) and s.numel() not in (1, 256)]
    real = sum(state.numel() * state.element_size() for state in large)

    profile = simulate(workload())
    group = next(g for g in profile.groups if g.trained_tensors)
    import dataclasses

    one = dataclasses.replace(
        group, trained_tensors=(256 * 64,), trained_elements=256 * 64, trained_bytes=4 * 256 * 64
    )
    alone = dataclasses.replace(profile, groups=(one,))
    assert state_bytes("adamw_8bit", alone).of_parameters == pytest.approx(real, rel=0.02)
