"""Tokens that a run adds: the tokenizer and the embeddings grow, and the new rows train."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailplan.errors import ModelError, RunFileError
from sailplan.model.families import Family

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Indices = dict[str, list[int]]
"""The ids that train, for each module that has a row for them."""


def add_tokens(tokenizer: Any, wanted: Sequence[str], special: Iterable[str]) -> tuple[int, ...]:
    """Adds tokens to the tokenizer, and returns the ids whose embeddings have to train.

    Args:
        tokenizer: The tokenizer, changed in place.
        wanted: The run's `added_tokens`. They are not split, and shown in answers; one that the
            vocabulary has already trains too, since the run names it.
        special: Tokens of a chat template that the vocabulary lacks. They are left out of answers.

    Raises:
        RunFileError: One of `wanted` is empty or blank, or is named twice.
    """
    from transformers import AddedToken

    for token in wanted:
        if not token.strip() or list(wanted).count(token) > 1:
            got = f"added_tokens holds {token!r}{' twice' if token.strip() else ''}"
            raise RunFileError(got, allowed="different tokens that are not blank")
    plain = [AddedToken(token, special=False, normalized=False) for token in wanted]
    tokenizer.add_tokens([token for token in plain if token.content not in tokenizer.get_vocab()])
    framing = [AddedToken(token, special=True, normalized=False) for token in special]
    tokenizer.add_tokens(framing, special_tokens=True)
    names = [*wanted, *(token.content for token in framing)]
    return tuple(sorted({tokenizer.convert_tokens_to_ids(name) for name in names}))


def grown(family: Family, added_ids: Collection[int]) -> Family:
    """Returns the family with a vocabulary that holds the added ids."""
    size = max([family.vocabulary_size, *(number + 1 for number in added_ids)])
    return dataclasses.replace(family, vocabulary_size=size)


def resize_embeddings(model: PreTrainedModel, added_ids: Collection[int], *, seed: int) -> None:
    """Makes the model's input and output embeddings hold the added ids.

    New rows are drawn around the mean of the old ones, as transformers does it, from a seed of
    their own: the same on every rank, and again when the run goes on.

    Args:
        model: The model, changed in place with its config.
        added_ids: The ids.
        seed: Of the new rows.

    Raises:
        ModelError: Input and output embeddings of this model have different sizes.
    """
    import torch

    size = max(added_ids, default=-1) + 1
    if size <= model.config.get_text_config().vocab_size:
        return
    head = model.get_output_embeddings()
    rows = {model.get_input_embeddings().num_embeddings, getattr(head, "out_features", None)}
    if len(rows - {None}) > 1:
        raise ModelError(
            f"a {model.config.model_type} model has more input embeddings than logits, so tokens "
            "cannot be added to it",
            todo="use tokens that it has",
        )
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it tells how the new rows are drawn
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.resize_token_embeddings(size)
    finally:
        logger.setLevel(level)


def token_indices(
    model: PreTrainedModel, added_ids: Sequence[int], kept: Collection[str]
) -> Indices | None:
    """Returns PEFT's `trainable_token_indices`: the added rows, and those of a head of its own.

    Args:
        model: The model, before PEFT wraps it.
        added_ids: The ids.
        kept: The modules that train as a whole (`lora_modules_to_save`).

    Raises:
        ModelError: The weights are sharded, where PEFT cannot train single rows.
    """
    if not added_ids:
        return None
    from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    modules: list[nn.Module] = [embedding]
    if head is not None and head.weight is not embedding.weight:
        modules.append(head)
    names = [_short_name(model, module) for module in modules]
    left = [name for name in names if not any(f".{name}".endswith(f".{k}") for k in kept)]
    if left and (is_deepspeed_zero3_enabled() or is_fsdp_enabled()):
        raise ModelError(
            f"the rows of {len(added_ids)} added tokens cannot train apart from {left[0]} while "
            "its weight is sharded",
            todo=f"write lora_modules_to_save: [{', '.join(names)}] to train it whole, or use "
            "strategy ddp, zero1 or zero2",
        )
    return {name: list(added_ids) for name in left} or None


def settle_rows(model: Any) -> None:
    """Has single rows train under TRL's fused LM head, and saved alone (peft 0.21).

    The fused head asks the head for weight and bias, and PEFT's wrapper of single rows knows of the
    weight alone. And where the vocabulary has grown, PEFT would save the embeddings whole in each
    checkpoint, though all that is new of them are those rows.

    Args:
        model: The model, wrapped by PEFT or not, changed in place.
    """
    from peft.utils.other import TrainableTokensWrapper

    wrappers = [module for module in model.modules() if isinstance(module, TrainableTokensWrapper)]
    for module in wrappers:
        module.bias = getattr(module.original_module, "bias", None)
    if wrappers:
        model.save_pretrained = functools.partial(
            model.save_pretrained, save_embedding_layers=False
        )


def fit_to_adapter(model: PreTrainedModel, adapter: Path) -> None:
    """Makes room in the embeddings for the added tokens of an adapter, which brings their rows."""
    from safetensors import safe_open

    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    indices = settings.get("trainable_token_indices") or {}
    ids = [number for of in indices.values() for number in of] if isinstance(indices, dict) else []
    name = _short_name(model, model.get_input_embeddings())
    with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as file:
        for key in file.keys():  # noqa: SIM118  it is no mapping
            if key.endswith(f".{name}.weight"):
                ids.append(file.get_slice(key).get_shape()[0] - 1)
    resize_embeddings(model, ids, seed=0)


def _short_name(model: nn.Module, module: nn.Module) -> str:
    """Returns the shortest end of the module's name that means it alone."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    own = next(name for name, other in model.named_modules() if other is module)
    parts = own.split(".")
    ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    return next(end for end in ends if sum(f".{name}".endswith(f".{end}") for name in names) == 1)
