"""What one rank of `test_memory_on_cpu` holds under real DeepSpeed, written to `OUT/rankN.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import LlamaForCausalLM

from sailplan.train.errors import leave
from tests.plan.tiny import CONFIG

BUCKET = 50_000


def size(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors: of views, what they show of their storage."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def states(optimizer: Any) -> list[torch.Tensor]:
    """The states that the optimizer keeps for each weight."""
    kept = [state for of_one in optimizer.state.values() for state in of_one.values()]
    return [state for state in kept if torch.is_tensor(state) and state.numel() > 1]


def held(stage: int) -> dict[str, int]:
    """Takes a step under a stage of ZeRO, and counts what is kept."""
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET,
            "stage3_param_persistence_threshold": 0,
        },
        "zero_allow_untested_optimizer": True,
    }
    torch.manual_seed(0)
    with deepspeed.zero.Init(config_dict_or_path=settings, enabled=stage == 3):
        model = LlamaForCausalLM(CONFIG)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(model.parameters()), config=settings
    )
    ids = torch.ones(1, 16, dtype=torch.long)
    engine.backward(engine(input_ids=ids, labels=ids, use_cache=False).loss)
    gradients, optimizer = [], engine.optimizer
    if stage == 3:
        gradients = [optimizer.grad_partitions_flat_buffer]
    else:
        kept = [piece for group in optimizer.averaged_gradients.values() for piece in group or ()]
        gradients = [piece for piece in kept if piece is not None]
        gradients += [p.grad for p in model.parameters() if p.grad is not None]
    of_gradients = size(gradients)
    engine.step()
    if stage == 3:
        parameters = [p.ds_tensor for p in model.parameters()]
        masters = optimizer.fp32_partitioned_groups_flat
    else:
        parameters = optimizer.bit16_groups_flat
        masters = optimizer.single_partition_of_fp32_groups
    return {
        "parameters": size(parameters),
        "gradients": of_gradients,
        "optimizer": size([*masters, *states(optimizer.optimizer)]),
    }


def main() -> None:
    """Goes through the stages."""
    deepspeed.init_distributed("gloo")
    out = {f"zero{stage}": held(stage) for stage in (1, 2, 3)}
    rank = torch.distributed.get_rank()
    Path(sys.argv[1], f"rank{rank}.json").write_text(json.dumps(out))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    leave()


if __name__ == "__main__":
    main()
