"""What one rank does in `test_fsdp`: `torchrun` starts it, and FSDP2 shards the model over gloo.

The first rank's samples have images, the second's have none; the first writes `OUT/FAMILY.pt`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from sailplan.train.errors import leave
from tests.support.packed import Setting, num_trained

RATE = 0.1


def samples(setting: Setting) -> list[list[dict[str, Any]]]:
    """The samples of each rank."""
    return [
        [
            setting.row("A red square beside a line.", (84, 60), (40, 90)),
            setting.row("A.", (56, 56)),
        ],
        [setting.row("Nothing to be seen."), setting.row("Words, and nothing besides.")],
    ]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train(folder: Path) -> dict[str, Any]:
    """Returns the loss, the gradients and what the parameters are after a step."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    setting = Setting.load(folder)
    model, of_ranks = setting.model, samples(setting)
    mesh = torch.distributed.init_device_mesh("cpu", (world_size,))
    for module in model.modules():
        if type(module).__name__ in (model._no_split_modules or ()):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    collate = setting.collate(packs=True, dummy=True)
    trained = sum(map(num_trained, of_ranks))
    batch = collate(of_ranks[rank])
    loss = model(**batch, use_cache=False, num_items_in_batch=trained).loss
    (loss * world_size).backward()  # FSDP averages
    gradients = {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    total = loss.detach().clone()
    dist.all_reduce(total)
    weights = {name: whole(parameter.detach()) for name, parameter in model.named_parameters()}
    return {"loss": float(total), "gradients": gradients, "weights": weights}


def main() -> None:
    out = Path(sys.argv[1])
    dist.init_process_group("gloo")
    for folder in map(Path, sys.argv[2:]):
        found = train(folder)
        if dist.get_rank() == 0:
            torch.save(found, out / f"{folder.name}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    leave()
