"""The adapter out of a sharded checkpoint, under the names that PEFT saves it by.

Where ZeRO-3 or FSDP wrote an adapter file that is empty (40 or 443 bytes, or tensors of size 0),
the weights stand in the sharded state beside it, under the names of PEFT's modules.
"""

from __future__ import annotations

import re
from dataclasses import replace

from sailplan.checkpoint.adapter_folder import CONFIG, WEIGHTS, AdapterFolder, read_config
from sailplan.errors import CheckpointError
from sailplan.merge.read import read
from sailplan.merge.source import Source
from sailplan.merge.tensor_plan import Shard, TensorPlan

_PREFIX = "base_model.model."
_ADAPTER_PART = re.compile(
    r"\.(lora_(A|B|embedding_A|embedding_B|magnitude_vector)|modules_to_save|trainable_tokens_delta)"
    r"\.default(?=\.|$)"
)


def saved_name(name: str) -> str | None:
    """Returns the name in PEFT's file of a parameter of PEFT's modules; None where it is not saved.

    The rules are those of peft 0.21, `get_peft_model_state_dict`.
    """
    if not name.startswith(_PREFIX):
        return None
    match = _ADAPTER_PART.search(name)
    if match is None:
        return name if name.endswith(".bias") else None
    if match[1] == "modules_to_save":
        return name.replace(match[0], "")
    name = name.replace(match[0], f".{match[1]}")
    return name.removesuffix(".weight") if match[1] == "lora_magnitude_vector" else name


def adapter_plans(source: Source, dtype: str | None = None) -> list[TensorPlan]:
    """Returns the tensors of the adapter in a sharded checkpoint, as PEFT would save them.

    Args:
        source: A ZeRO or FSDP checkpoint of an adapter.
        dtype: What they are written in; by default what they were trained in.

    Raises:
        CheckpointError: There is no adapter in it.
    """
    config = read_config(source.home)
    plans: dict[str, TensorPlan] = {}
    for plan in read(source, dtype):
        name = saved_name(plan.name)
        if name is None or (name.endswith(".bias") and not _is_trained(name, config)):
            continue
        if "trainable_tokens_delta" in name and name in plans:
            continue
        plans.setdefault(name, replace(plan, name=name))
    if not plans:
        raise CheckpointError(f"{source} holds no adapter", todo="merge it as a model instead")
    return list(plans.values())


def adapter_of(source: Source, dtype: str | None = None) -> AdapterFolder:
    """Returns the adapter in a sharded checkpoint as if PEFT had saved it.

    Raises:
        CheckpointError: There is none in it.
    """
    plans = adapter_plans(source, dtype)
    return AdapterFolder(
        folder=source.folder,
        config=read_config(source.home),
        tensors={plan.name: plan.source for plan in plans},
    )


def recovered(source: Source, dtype: str | None = None) -> tuple[Shard, dict[str, bytes]]:
    """Returns an adapter's file, and what stands beside it.

    Raises:
        CheckpointError: There is no adapter in the checkpoint.
    """
    shard = Shard(name=WEIGHTS[0], tensors=tuple(adapter_plans(source, dtype)))
    return shard, {CONFIG: (source.home / CONFIG).read_bytes()}


def _is_trained(name: str, config: dict[str, object]) -> bool:
    """Says whether a bias is the adapter's: one of LoRA's own, or of the base where they train."""
    return ".lora_" in name or config.get("bias") in ("all", "lora_only")
