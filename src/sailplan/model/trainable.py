"""What is trained: all of the model, or adapters; and how much that is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sailplan.errors import ModelError
from sailplan.model.families import family_of
from sailplan.model.targets import target_modules

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel

    from sailplan.run.config import Run


def lora_config(run: Run, model: PreTrainedModel) -> LoraConfig | None:
    """Returns the adapter's configuration for `model`, None where the run does not use PEFT.

    Raises:
        ModelError: A target matches no layer of the model, or PEFT refuses a value.
    """
    if not run.get("use_peft"):
        return None
    from peft import LoraConfig

    if run.get("lora_r") < 1:
        raise ModelError(f"lora_r is {run.get('lora_r')}", allowed="1 or more")
    kept = run.get("lora_modules_to_save") or []
    modules = [name for name, _ in model.named_modules()]
    for wanted in kept:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in modules):
            raise ModelError(
                f"lora_modules_to_save: {wanted!r} is no module of the model",
                allowed="names such as embed_tokens or lm_head",
            )
    optional = {}
    if run.is_set("lora_target_parameters"):
        optional["target_parameters"] = run.get("lora_target_parameters")
    targets = target_modules(
        model,
        run.get("lora_target_modules"),
        vision=bool(run.get("lora_vision")),
        unused=family_of(model.config).unused_parameters(model),
    )
    try:
        return LoraConfig(
            task_type=run.get("lora_task_type"),
            r=run.get("lora_r"),
            lora_alpha=run.get("lora_alpha"),
            lora_dropout=run.get("lora_dropout"),
            bias=run.get("lora_bias"),
            use_rslora=run.get("use_rslora"),
            use_dora=run.get("use_dora"),
            modules_to_save=kept or None,
            target_modules=targets,
            **optional,
        )
    except (ValueError, TypeError) as error:
        raise ModelError(f"PEFT refuses the LoRA settings: {error}") from error


def freeze_unused(model: PreTrainedModel | PeftModel) -> tuple[str, ...]:
    """Freezes what would train but can never have a gradient, and returns its names.

    Args:
        model: The model that trains, wrapped by PEFT where it does (`lora_bias: all` makes
            biases trainable wherever they lie).
    """
    parameters = dict(model.named_parameters())
    unused = family_of(model.config).unused_parameters(model)
    names = tuple(name for name in unused if parameters[name].requires_grad)
    for name in names:
        parameters[name].requires_grad_(False)
    return names


def describe(model: nn.Module) -> str:
    """Returns `trainable params: … || all params: … || trainable%: …` for the whole model.

    Packed 4-bit weights count as the weights they stand for, ZeRO-3's shards as whole tensors.
    """
    trainable = total = 0
    for parameter in model.parameters():
        count = _count(parameter)
        total += count
        trainable += count if parameter.requires_grad else 0
    share = 100 * trainable / total if total else 0.0
    return f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share:.4f}"


def _count(parameter: nn.Parameter) -> int:
    quantised = getattr(parameter, "quant_state", None)
    if quantised is not None:
        return math.prod(quantised.shape)
    return int(getattr(parameter, "ds_numel", parameter.numel()))
