"""What a run needs beside the GPUs: memory of each node's host, and disk."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sailplan.checkpoint.stored import ITEM_BYTES
from sailplan.plan.profile import Profile
from sailplan.plan.sharding import GIB, Sharding
from sailplan.plan.workload import Workload

PROCESS_BYTES = int(3.5 * GIB)
"""Of a rank with torch, CUDA and the training libraries loaded: an estimate."""

WORKER_BYTES = int(0.8 * GIB)
"""Of a DataLoader worker, with what it does not share with its rank: an estimate."""

_SHARD_FILE_BYTES = 5 * 10**9
"""The size to which models are split into files: the most that is read at once."""

_BUFFER_FACTOR = 1.5
"""DeepSpeed's own allowance for buffers (`estimate_zero3_model_states_mem_needs`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """Bytes of one node's host memory, at the node that needs most."""

    processes_bytes: int
    """All the time: ranks, and the workers that load their data."""
    loading_bytes: int
    """On top while the model is loaded."""
    training_bytes: int
    """On top while it trains: what is offloaded."""
    saving_bytes: int
    """On top of that while it is saved."""

    @property
    def peak_bytes(self) -> int:
        """The most at any time."""
        on_top = max(self.loading_bytes, self.training_bytes + self.saving_bytes)
        return self.processes_bytes + on_top


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """Bytes below `output_dir`."""

    checkpoint_bytes: int
    """Of one checkpoint."""
    checkpoints: int
    """Most that are there at once; one more than are kept, while the next is written."""
    model_bytes: int
    """The model or adapter that the run ends with."""
    merge_bytes: int
    """What `sailplan merge` writes on top, in 16 bits."""

    @property
    def written_bytes(self) -> int:
        """What training writes."""
        return self.checkpoint_bytes * self.checkpoints + self.model_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """How a run saves, as its fields say."""

    strategy: str
    """`no`, `steps`, `epoch` or `best`."""
    steps: float
    """`save_steps`: a count, or a share of all steps below 1."""
    limit: int | None
    """`save_total_limit`."""
    only_model: bool
    """`save_only_model`."""

    def checkpoints(self, total_steps: int, epochs: float) -> int:
        """Returns the most checkpoints that lie on the disk at once."""
        if self.strategy == "no":
            return 0
        if self.strategy == "epoch":
            made = math.ceil(epochs)
        else:
            every = self.steps if self.steps >= 1 else max(1.0, self.steps * total_steps)
            made = math.floor(total_steps / every)
            made += int(made * every < total_steps)  # Trainer saves the last step too
        return made if self.limit is None else min(made, self.limit + 1)


def host_memory(profile: Profile, sharding: Sharding, *, workers: int) -> Host:
    """Returns the memory that a node's host needs.

    Offloading counts by DeepSpeed's own formulas (`estimate_zero2_model_states_mem_needs` and
    `estimate_zero3_model_states_mem_needs`, 0.19), for what trains; what
    does not takes two bytes a weight.

    Args:
        profile: The micro batch.
        sharding: How it is divided.
        workers: `dataloader_num_workers`.
    """
    ranks = min(sharding.ranks, sharding.ranks_per_node)
    nodes = math.ceil(sharding.ranks / sharding.ranks_per_node)
    parameters, trained = profile.parameters, profile.trained_parameters
    weights_bytes = sum(group.frozen_bytes + group.trained_bytes for group in profile.groups)
    loading = min(weights_bytes, _SHARD_FILE_BYTES)
    if sharding.strategy == "fsdp2":
        loading = parameters * 4  # whole, on the first rank
    training = 0
    if sharding.offload_optimizer:
        training = offload_bytes(
            trained,
            zero3=sharding.strategy in ("zero3", "zero3_offload"),
            parameters_too=sharding.offload_parameters,
            ranks=sharding.ranks,
            nodes=nodes,
        )
    if sharding.offload_parameters:
        training += int(2 * (parameters - trained) / nodes * _BUFFER_FACTOR)
    saving = 0
    if sharding.ranks > 1 and sharding.strategy in ("zero3", "zero3_offload", "fsdp2"):
        saving = trained * (4 if sharding.strategy == "fsdp2" else 2)
    return Host(
        processes_bytes=ranks * (PROCESS_BYTES + workers * WORKER_BYTES),
        loading_bytes=loading,
        training_bytes=training,
        saving_bytes=saving,
    )


def offload_bytes(
    parameters: int, *, zero3: bool, parameters_too: bool = False, ranks: int, nodes: int
) -> int:
    """Returns DeepSpeed's own estimate of a node's host memory for what is offloaded.

    Args:
        parameters: Weights that train.
        zero3: Whether the weights are sharded, and were loaded so.
        parameters_too: Whether they are offloaded as well.
        ranks: All ranks.
        nodes: Nodes.
    """
    if not zero3:
        return int(parameters * max(4 * ranks, 16) * _BUFFER_FACTOR)
    return int(parameters * (18 if parameters_too else 16) / nodes * _BUFFER_FACTOR)


def disk_space(
    profile: Profile,
    workload: Workload,
    sharding: Sharding,
    *,
    state_bytes: float,
    saving: Saving,
    total_steps: int,
    epochs: float,
) -> Disk:
    """Returns the disk space that a run needs.

    Args:
        profile: The micro batch.
        workload: What it was made of.
        sharding: How it is divided.
        state_bytes: The optimizer's states over all ranks, DeepSpeed's float32 weights among them.
        saving: How the run saves.
        total_steps: Optimizer steps.
        epochs: Passes over the rows.
    """
    trained = profile.trained_parameters
    deepspeed = sharding.strategy.startswith("zero")
    size = 2 if deepspeed else ITEM_BYTES[workload.weights]
    if workload.adapter is not None:
        size = 2 if deepspeed else ITEM_BYTES[workload.adapter.dtype]
    if sharding.strategy == "fsdp2":
        size = 4
    saved = trained if workload.adapter else profile.parameters
    model = saved * size
    checkpoint = model + (0 if saving.only_model else int(state_bytes))
    return Disk(
        checkpoint_bytes=checkpoint,
        checkpoints=saving.checkpoints(total_steps, epochs),
        model_bytes=model,
        merge_bytes=2 * profile.parameters,
    )
