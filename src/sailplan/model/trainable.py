"""What is trained: all of the model, or adapters; and how much that is."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sailplan.errors import ModelError
from sailplan.model.families import family_of
from sailplan.model.freezing import frozen_parts
from sailplan.model.parts import find_parts, parameters_by_part
from sailplan.model.targets import selected_modules, target_modules
from sailplan.model.vocabulary import token_indices

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel

    from sailplan.run.config import Run


def lora_config(
    run: Run, model: PreTrainedModel, added_ids: Sequence[int] = ()
) -> LoraConfig | None:
    """Returns the adapter's configuration for `model`, None where the run does not use PEFT.

    Args:
        run: The run.
        model: The model, before PEFT wraps it.
        added_ids: Ids of added tokens, whose embeddings train beside the adapters.

    Raises:
        ModelError: A target matches no layer of the model, or PEFT refuses a value.
    """
    if not run.get("use_peft"):
        return None
    from peft import LoraConfig

    if run.get("lora_r") < 1:
        raise ModelError(f"lora_r is {run.get('lora_r')}", allowed="1 or more")
    frozen = frozen_parts(run, model)
    kept = run.get("lora_modules_to_save") or []
    _check_kept(kept, model, frozen)
    optional = {}
    if run.is_set("lora_target_parameters"):
        optional["target_parameters"] = run.get("lora_target_parameters")
    if run.get("init_lora_weights"):
        optional["init_lora_weights"] = run.get("init_lora_weights")
    targets = target_modules(
        model,
        run.get("lora_target_modules"),
        vision=bool(run.get("lora_vision")),
        unused=family_of(model.config).unused_parameters(model),
        frozen=frozen,
    )
    adapted = selected_modules(targets, [name for name, _ in model.named_modules()])
    for pattern in ("lora_rank_pattern", "lora_alpha_pattern"):
        _check_pattern(pattern, run.get(pattern) or {}, adapted)
    try:
        return LoraConfig(
            task_type=run.get("lora_task_type"),
            r=run.get("lora_r"),
            lora_alpha=run.get("lora_alpha"),
            lora_dropout=run.get("lora_dropout"),
            bias=run.get("lora_bias"),
            use_rslora=run.get("use_rslora"),
            use_dora=run.get("use_dora"),
            rank_pattern=run.get("lora_rank_pattern") or {},
            alpha_pattern=run.get("lora_alpha_pattern") or {},
            modules_to_save=kept or None,
            trainable_token_indices=token_indices(model, added_ids, kept),
            target_modules=targets,
            **optional,
        )
    except (ValueError, TypeError) as error:
        raise ModelError(f"PEFT refuses the LoRA settings: {error}") from error


def trained_parts(run: Run, model: PreTrainedModel, adapters: LoraConfig | None) -> frozenset[str]:
    """Returns the parts in which anything will train.

    Args:
        run: The run.
        model: The model, before PEFT wraps it.
        adapters: What `lora_config` gave.

    Raises:
        ModelError: As for `frozen_parts`.
    """
    left = frozenset(parameters_by_part(model)) - frozen_parts(run, model)
    if adapters is None or adapters.bias == "all":
        return left
    modules = [name for name, _ in model.named_modules()]
    ends = [*(adapters.modules_to_save or ()), *(adapters.target_parameters or ())]
    ends += adapters.trainable_token_indices or ()
    names = {*modules, *(name for name, _ in model.named_parameters())}
    chosen = selected_modules(adapters.target_modules or [], modules)
    chosen |= {name for name in names for end in ends if f".{name}".endswith(f".{end}")}
    parts = find_parts(model)
    return left & {parts.part_of(name) for name in chosen}


def _check_kept(kept: Sequence[str], model: PreTrainedModel, frozen: Collection[str]) -> None:
    parts = find_parts(model)
    modules = [name for name, _ in model.named_modules()]
    for wanted in kept:
        found = [name for name in modules if name == wanted or name.endswith(f".{wanted}")]
        if not found:
            raise ModelError(
                f"lora_modules_to_save: {wanted!r} is no module of the model",
                allowed="names such as embed_tokens or lm_head",
            )
        for part in {parts.part_of(name) for name in found} & set(frozen):
            got = f"lora_modules_to_save: {wanted!r} lies in {part}, which freeze names"
            raise ModelError(got, todo="drop one of the two")


def _check_pattern(field: str, pattern: Mapping[str, Any], adapted: Collection[str]) -> None:
    """Refuses patterns of ranks or alphas that PEFT would pass over in silence."""
    from peft.utils.other import get_pattern_key

    for key, value in pattern.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            got = f"{field}: {key!r} is {value!r}"
            raise ModelError(got, allowed="a whole number, 1 or more")
        try:
            re.compile(key)
        except re.error as error:
            got = f"{field}: {key!r} is no regular expression ({error})"
            raise ModelError(got, allowed="layer names or regular expressions") from None
    used = {get_pattern_key(list(pattern), name) for name in adapted}
    for key in pattern:
        if key not in used:
            leaves = ", ".join(sorted({name.rpartition(".")[2] for name in adapted}))
            got = f"{field}: {key!r} matches no adapted layer that an earlier pattern leaves"
            raise ModelError(got, allowed=leaves)


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
        count = num_weights(parameter)
        total += count
        trainable += count if parameter.requires_grad else 0
    share = 100 * trainable / total if total else 0.0
    return f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share:.4f}"


def describe_parts(
    model: PreTrainedModel | PeftModel, rates: Mapping[str, float]
) -> tuple[str, ...]:
    """Returns a line for each part of a model that has several: what trains of it, and how fast.

    Args:
        model: The model that trains.
        rates: The learning rate of each part.
    """
    parts, lines = parameters_by_part(model), []
    for part, parameters in parts.items():
        trainable = sum(num_weights(p) for p in parameters.values() if p.requires_grad)
        total = sum(map(num_weights, parameters.values()))
        how = f"learning rate {rates[part]:g}" if trainable else "frozen"
        lines.append(f"{part}: trainable params: {trainable:,} || all params: {total:,} || {how}")
    return tuple(lines) if len(parts) > 1 else ()


def num_weights(parameter: nn.Parameter) -> int:
    """Returns the weights of a tensor: packed 4-bit ones unpacked, ZeRO-3's shards whole."""
    quantised = getattr(parameter, "quant_state", None)
    if quantised is not None:
        return math.prod(quantised.shape)
    return int(getattr(parameter, "ds_numel", parameter.numel()))
