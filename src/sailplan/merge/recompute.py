"""One merged weight as PEFT's own layer makes it, to compare with what was written."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailplan.merge.adapter_settings import targeted_parameters

if TYPE_CHECKING:
    import torch
    from torch import nn

_PREFIX = "base_model.model."


def recompute(
    adapter: Path, model: nn.Module, name: str, weight: torch.Tensor
) -> torch.Tensor | None:
    """Returns a weight with an adapter merged into it by PEFT; None where it holds no part for it.

    Only the module of this weight is made, inside empty ones that give it its name.

    Args:
        adapter: The adapter's folder.
        model: The base, on the meta device.
        name: The weight's name among the modules'.
        weight: Its values in the base.
    """
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    path, _, parameter = name.rpartition(".")
    tensors = {key: tensor for key, tensor in _load(adapter).items() if _is_part(key, path)}
    lora = {key: tensor for key, tensor in tensors.items() if ".lora_" in key}
    if not lora:
        return None
    leaf = copy.deepcopy(model.get_submodule(path)).to_empty(device="cpu")
    for own, values in leaf.named_parameters(recurse=False):
        dtype = weight.dtype if values.is_floating_point() else values.dtype
        setattr(leaf, own, torch.nn.Parameter(torch.zeros(values.shape, dtype=dtype), False))
    setattr(leaf, parameter, torch.nn.Parameter(weight.clone(), False))
    config: Any = LoraConfig.from_pretrained(adapter)
    alone = targeted_parameters({"target_parameters": config.target_parameters}, path, leaf)
    config.target_modules = [] if alone else [path]
    config.task_type = config.modules_to_save = config.trainable_token_indices = None
    config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
    if not alone:
        config.target_parameters = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about patterns of other modules, and the base's name
        tuned: Any = get_peft_model(_within(path, leaf), config)
        set_peft_model_state_dict(tuned, lora)
        merged = tuned.merge_and_unload().get_submodule(path)
    found: torch.Tensor = getattr(merged, parameter).data
    return found


def _is_part(key: str, path: str) -> bool:
    rest = key.removeprefix(f"{_PREFIX}{path}.")
    return rest != key and rest.replace("base_layer.", "").startswith("lora_")


def _within(path: str, leaf: nn.Module) -> nn.Module:
    """Returns a module that holds the leaf at its path, and nothing else."""
    from torch import nn

    for part in reversed(path.split(".")):
        outer = nn.Module()
        outer.add_module(part, leaf)
        leaf = outer
    return leaf


def _load(adapter: Path) -> dict[str, torch.Tensor]:
    """Returns the adapter's tensors as the libraries read them."""
    import torch
    from safetensors.torch import load_file

    if (adapter / "adapter_model.safetensors").is_file():
        return dict(load_file(adapter / "adapter_model.safetensors"))
    content: dict[str, torch.Tensor] = torch.load(
        adapter / "adapter_model.bin", weights_only=True, map_location="cpu"
    )
    return content
