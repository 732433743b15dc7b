"""What one rank does in `test_zero`: `torchrun` starts it, and it writes real ZeRO checkpoints.

Each case trains a small model for two steps and leaves `OUT/CASE/global_step1` and `global_step2`,
and beside them what the parameters were at the end: `expected.pt`, gathered by DeepSpeed itself.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn

from sailplan.train.errors import leave


class Model(nn.Module):
    """Odd sizes, a tied head, a frozen layer, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 7)
        self.frozen = nn.Linear(7, 5)
        self.middle = nn.Linear(5, 11)
        self.norm = nn.LayerNorm(11)
        self.back = nn.Linear(11, 7, bias=False)
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(7, 13, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mean", torch.arange(7.0))
        self.frozen.requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.middle(self.frozen(self.embed(ids))))
        hidden = self.back(hidden) * self.scale + self.mean.to(hidden.dtype)
        return nn.functional.cross_entropy(self.head(hidden).float(), ids)


BF16 = {"bf16": {"enabled": True}}
CASES: dict[str, dict[str, Any]] = {
    "zero1": {"zero_optimization": {"stage": 1}, **BF16},
    "zero2": {"zero_optimization": {"stage": 2}, **BF16},
    "zero3": {"zero_optimization": {"stage": 3}, **BF16},
    "zero1_fp32": {"zero_optimization": {"stage": 1}},
    "zero2_two_groups": {"zero_optimization": {"stage": 2}, **BF16},
    "zero3_two_groups": {"zero_optimization": {"stage": 3, "sub_group_size": 40}, **BF16},
    "zero3_subgroups": {"zero_optimization": {"stage": 3, "sub_group_size": 50}, **BF16},
    "zero2_offload": {
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        "zero_force_ds_cpu_optimizer": False,
        **BF16,
    },
    "zero3_offload": {
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": {"device": "cpu"},
            "offload_param": {"device": "cpu"},
        },
        "zero_force_ds_cpu_optimizer": False,
        **BF16,
    },
    "zero1_bf16_optimizer": {
        "zero_optimization": {"stage": 1},
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
    },
    "zero3_legacy": {
        "zero_optimization": {"stage": 3},
        "checkpoint": {"checkpoint_serialization": False},
        **BF16,
    },
    "zero2_legacy": {
        "zero_optimization": {"stage": 2},
        "checkpoint": {"checkpoint_serialization": False},
        **BF16,
    },
}


def groups(model: Model, name: str) -> list[dict[str, Any]]:
    """The optimizer's groups: all in one, or biases and norms apart."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if "two_groups" not in name:
        return [{"params": [p for _, p in trained]}]
    plain = [p for n, p in trained if p.dim() < 2]
    return [{"params": [p for _, p in trained if p.dim() >= 2]}, {"params": plain, "lr": 0.1}]


def gathered(model: Model) -> dict[str, torch.Tensor]:
    """All parameters and buffers: trained ones from their float32 master."""
    whole: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            whole[name] = safe_get_full_fp32_param(parameter)
        else:
            partitioned = hasattr(parameter, "ds_id")
            with deepspeed.zero.GatheredParameters([parameter], enabled=partitioned):
                whole[name] = parameter.detach().clone()
    return whole | {name: buffer.clone() for name, buffer in model.named_buffers()}


def main() -> None:
    deepspeed.init_distributed("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for name, settings in CASES.items():
        folder = Path(sys.argv[1]) / name
        torch.manual_seed(0)
        model = Model()
        config = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": world, **settings}
        optimizer = torch.optim.AdamW(groups(model, name), lr=0.01)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        for step in range(2):
            generator = torch.Generator().manual_seed(10 * step + rank)
            engine.backward(engine(torch.randint(13, (3,), generator=generator)))
            engine.step()
            engine.save_checkpoint(str(folder))
        whole = gathered(engine.module)
        if rank == 0:
            torch.save(whole, folder / "expected.pt")
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
    leave()
