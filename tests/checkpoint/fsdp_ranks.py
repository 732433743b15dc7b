"""What one rank does in `test_dcp`: `torchrun` starts it, and it writes a real FSDP checkpoint.

accelerate itself saves into `OUT`; beside it lies what the parameters were: `expected.pt`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import save_fsdp_model, save_fsdp_optimizer
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from sailplan.train.errors import leave


class Model(nn.Module):
    """Odd sizes, a tied head, a number, whole numbers, half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 7)
        self.middle = nn.Linear(7, 5)
        self.conv = nn.Conv1d(3, 5, 3)
        self.short = nn.Linear(1, 7, bias=False)
        self.head = nn.Linear(7, 13, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.full((1,), 0.7))
        self.register_buffer("count", torch.tensor(42))
        self.register_buffer("mean", torch.tensor(0.25))
        self.register_buffer("ids", torch.arange(6).view(2, 3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        return (self.head(hidden) * self.scale).sum() + self.middle(hidden).sum()


def main() -> None:
    out = Path(sys.argv[1])
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = Model().to(getattr(torch, sys.argv[2]))
    mesh = torch.distributed.init_device_mesh("cpu", (accelerator.num_processes,))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.arange(4)).backward()
    optimizer.step()
    save_fsdp_model(plugin, accelerator, model, str(out))
    save_fsdp_optimizer(plugin, accelerator, optimizer, model, str(out))
    whole = {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in model.state_dict().items()
    }
    # Boxes that are no whole rows: the second dimension is cut.
    if accelerator.num_processes == 2:
        placement = [Shard(1)]
        columns = torch.arange(30.0).view(5, 6)
        cut = distribute_tensor(columns, mesh, placement)
        dcp.save({"columns": cut}, checkpoint_id=str(out / "columns"))
    if accelerator.is_main_process:
        torch.save(whole, out / "expected.pt")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
    leave()
