"""Large checkpoints in the exact layouts of DeepSpeed, FSDP, transformers and PEFT, made fast."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import skip_data
from transformers import AutoModelForCausalLM, LlamaConfig

from sailplan.checkpoint import safetensors
from sailplan.checkpoint.stored import ITEM_BYTES

RANKS = 4
_LAYER_PARAMETERS, _OTHER_PARAMETERS = 51_384_320, 131_074_048


def config(num_parameters: float) -> LlamaConfig:
    """A Llama of 2,048 dimensions with about that many parameters."""
    layers = max(1, round((num_parameters - _OTHER_PARAMETERS) / _LAYER_PARAMETERS))
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )


def shapes(model: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Each parameter's shape, in the model's order."""
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(model)
    return {name: tuple(tensor.shape) for name, tensor in made.named_parameters()}


def values(numel: int, seed: int) -> torch.Tensor:
    """Random weights, drawn once and repeated: drawing them all would take minutes."""
    block = torch.empty(min(numel, 1 << 22)).normal_(
        std=0.02, generator=torch.Generator().manual_seed(seed)
    )
    return block.repeat(-(-numel // block.numel()))[:numel]


def zero3(folder: Path, model: LlamaConfig, *, hollow: bool = False) -> Path:
    """A `checkpoint-1` that DeepSpeed's ZeRO-3 could have written, on `RANKS` ranks, in bf16.

    Args:
        folder: Where.
        model: The shapes.
        hollow: Holes in the files in place of the weights, which take no room on the disk.
    """
    step = folder / "checkpoint-1" / "global_step1"
    step.mkdir(parents=True)
    model.save_pretrained(step.parent)
    (step.parent / "latest").write_text("global_step1")
    own = shapes(model)
    parts = {name: -(-math.prod(shape) // RANKS) for name, shape in own.items()}
    placeholders = {name: torch.empty(0, dtype=torch.bfloat16) for name in own}
    for rank in range(RANKS):
        numel = sum(parts.values())
        with FakeTensorMode() if hollow else nullcontext():
            flat = torch.empty(numel) if hollow else values(numel, rank)
        prefix = f"zero_pp_rank_{rank}_mp_rank_00"
        optimizer = {"zero_stage": 3, "partition_count": RANKS, "fp32_flat_groups": [flat]}
        with skip_data(materialize_fake_tensors=True) if hollow else nullcontext():
            torch.save(
                {"optimizer_state_dict": optimizer, "ds_config": {}, "ds_version": "0.19.8"},
                step / f"bf16_{prefix}_optim_states.pt",
            )
        states = {
            "module": OrderedDict(placeholders),
            "param_shapes": [OrderedDict((n, torch.Size(shape)) for n, shape in own.items())],
            "frozen_param_shapes": None,
            "frozen_param_fragments": None,
            "buffer_names": [],
            "shared_params": {},
            "global_steps": 1,
            "ds_version": "0.19.8",
        }
        torch.save(states, step / f"{prefix}_model_states.pt")
    return step.parent


def fsdp(folder: Path, model: LlamaConfig) -> Path:
    """A `checkpoint-1` with what accelerate saves under FSDP, in bf16."""
    import torch.distributed.checkpoint as dcp

    home = folder / "checkpoint-1"
    model.save_pretrained(home)
    state = dict(_weights(model))
    writer = dcp.FileSystemWriter(home / "pytorch_model_fsdp_0", thread_count=RANKS)
    dcp.save({"model": state}, storage_writer=writer)
    return home


def base(folder: Path, model: LlamaConfig) -> Path:
    """A published model in bf16."""
    model.save_pretrained(folder)
    save_file(dict(_weights(model)), folder / "model.safetensors", {"format": "pt"})
    return folder


def hollow_base(folder: Path, model: LlamaConfig, dtype: str) -> Path:
    """Writes a model's folder whose weights are a hole in one file: heads alone, all zeros."""
    model.save_pretrained(folder)
    sizes = shapes(model)
    head, begins = safetensors.layout({name: (dtype, shape) for name, shape in sizes.items()})
    last = max(begins, key=lambda name: begins[name])
    with (folder / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(begins[last] + ITEM_BYTES[dtype] * math.prod(sizes[last]))
    return folder


def adapter(folder: Path, model: LlamaConfig, home: Path, rank: int = 16) -> Path:
    """A trained adapter on every linear layer of it."""
    from peft import LoraConfig

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, task_type="CAUSAL_LM")
    settings.base_model_name_or_path = str(home)
    settings.save_pretrained(folder)
    tensors: dict[str, torch.Tensor] = {}
    for number, (name, shape) in enumerate(shapes(model).items()):
        module = name.removesuffix(".weight")
        if module.endswith(tuple(names)):
            for part, size in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
                key = f"base_model.model.{module}.lora_{part}.weight"
                tensors[key] = values(math.prod(size), number).view(size).clone()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def _weights(model: LlamaConfig) -> Iterator[tuple[str, torch.Tensor]]:
    for number, (name, shape) in enumerate(shapes(model).items()):
        yield name, values(math.prod(shape), number).view(shape).to(torch.bfloat16)
