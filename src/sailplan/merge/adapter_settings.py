"""What an adapter's settings say: whether it can be merged, and how its parts are weighed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sailplan.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

_PROMPTS = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")
_MUTATING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that change the base's weights too: it is no longer the published one."""
_VARIANTS = {
    "alora_invocation_tokens": "aLoRA acts from a token on, which no weight can express",
    "arrow_config": "Arrow chooses among adapters for each token",
    "use_bdlora": "block-diagonal LoRA is not supported yet",
    "use_qalora": "QALoRA's groups are not supported yet",
    "kasa_config": "KaSA changes the base's weights too",
    "monteclora_config": "MonteCLoRA samples its weights",
    "velora_config": "VeLoRA is not supported yet",
    "megatron_config": "Megatron's parallel layers are not supported",
    "layer_replication": "the base's layers were replicated, which no plain model is",
}


def check_kind(config: Mapping[str, Any]) -> None:
    """Refuses an adapter that no set of weights can express, or that is not known here.

    Args:
        config: PEFT's settings.

    Raises:
        CheckpointError: It is one of these, named with the reason.
    """
    kind = str(config.get("peft_type", "")).upper()
    if kind in _PROMPTS:
        raise CheckpointError(
            f"a {kind} adapter is made of virtual tokens, which cannot be merged into weights",
            todo="load it with PEFT on top of its base",
        )
    if kind != "LORA":
        raise CheckpointError(
            f"a {kind or 'nameless'} adapter cannot be merged here",
            allowed="LORA, with rsLoRA, DoRA, patterns, biases, tokens and modules_to_save",
            todo="merge it with PEFT's own merge_and_unload",
        )
    for field, reason in _VARIANTS.items():
        if config.get(field):
            raise CheckpointError(
                f"the adapter cannot be merged: {reason} ({field})",
                todo="load it with PEFT on top of its base",
            )
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_MUTATING):
        raise CheckpointError(
            f"the adapter began with {start}, which changes the base's weights as well",
            todo="convert it with PEFT (path_initial_model_for_weight_conversion of "
            "save_pretrained) and merge the result",
        )
    for field in ("r", "lora_alpha"):
        if not isinstance(config.get(field), int | float) or not config[field]:
            raise CheckpointError(f"adapter_config.json: {field} is {config.get(field)!r}")


def scaling(config: Mapping[str, Any], name: str) -> float:
    """Returns what the product of an adapter's matrices is multiplied with.

    Args:
        config: PEFT's settings.
        name: The module's name, or the parameter's where it is wrapped by itself.
    """
    rank = _by_pattern(config.get("rank_pattern") or {}, name, config["r"])
    alpha = _by_pattern(config.get("alpha_pattern") or {}, name, config["lora_alpha"])
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def targeted_parameters(config: Mapping[str, Any], name: str, module: nn.Module) -> list[str]:
    """Returns which of a module's own parameters PEFT wraps by themselves, in their order.

    Args:
        config: PEFT's settings, with `target_parameters`.
        name: The module's name.
        module: The module.
    """
    wanted = config.get("target_parameters") or ()
    return [
        parameter
        for parameter, _ in module.named_parameters(recurse=False)
        if any(f".{name}.{parameter}".endswith(f".{target}") for target in wanted)
    ]


def token_indices(config: Mapping[str, Any], module: str) -> list[int]:
    """Returns which rows of an embedding were trained by themselves; the settings alone say it."""
    indices = config.get("trainable_token_indices") or []
    if isinstance(indices, Mapping):
        ends = [key for key in indices if f".{module}".endswith(f".{key}")]
        # Of a head that is tied, PEFT names the embedding alone.
        indices = indices[ends[0]] if ends else next(iter(indices.values()), [])
    return [int(index) for index in indices]


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Returns the first value whose pattern matches the end of a name, as PEFT looks it up."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
