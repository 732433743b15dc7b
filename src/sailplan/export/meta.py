"""LLaMA in the layout of its first release: `consolidated.00.pth` and `params.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sailplan.errors import ModelError, OutputError
from sailplan.export.torch_file import write_torch_file
from sailplan.files import write_atomically
from sailplan.merge.names import to_modules
from sailplan.merge.planned import Planned
from sailplan.merge.read import read
from sailplan.merge.source import Source
from sailplan.merge.tensor_plan import TensorPlan, prove
from sailplan.model.skeleton import skeleton

if TYPE_CHECKING:
    from transformers import LlamaConfig

WEIGHTS, PARAMS = "consolidated.00.pth", "params.json"
_TOP = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_MULTIPLES = (256, 1024, 4096, 2048, 512, 128, 64, 32, 16, 8, 4, 2, 1)
_MULTIPLIERS = (None, 1.3, 1.5, 1.4)
"""Of the published sizes: none up to LLaMA-2-13B, 1.3 for 70B and LLaMA-3."""


def plans_of(model: Path, dtype: str | None = None) -> tuple[list[TensorPlan], dict[str, Any]]:
    """Returns the tensors of `consolidated.00.pth`, and what `params.json` says.

    Args:
        model: A Hugging Face folder of a LLaMA.
        dtype: What weights are written in; by default what they are stored in.

    Raises:
        ModelError: It is another architecture.
        CheckpointError: The weights are incomplete or broken.
    """
    made = skeleton(model)
    config = cast("LlamaConfig", made.config)
    if type(made).__name__ != "LlamaForCausalLM":
        raise ModelError(f"{model} is a {type(made).__name__}", allowed="LlamaForCausalLM")
    if config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
        raise ModelError(
            f"{model} has biases, or another activation than silu", allowed="LLaMA as published"
        )
    source = Source(kind="model", folder=model, home=model)
    weights = {plan.name: plan for plan in to_modules(read(source, dtype), made)}
    if "lm_head.weight" not in weights:
        tied = weights["model.embed_tokens.weight"]
        weights["lm_head.weight"] = replace(tied, name="lm_head.weight")
    plans = [_renamed(plan, config) for plan in weights.values()]
    prove(plans)
    return plans, params(config)


def params(config: LlamaConfig) -> dict[str, Any]:
    """Returns what `params.json` says of a config.

    Raises:
        ModelError: Its feed-forward layers have a size that the layout cannot express.
    """
    found: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "vocab_size": -1,
        "norm_eps": config.rms_norm_eps,
        **_feed_forward(config.hidden_size, config.intermediate_size),
    }
    if config.num_key_value_heads != config.num_attention_heads:
        found["n_kv_heads"] = config.num_key_value_heads
    theta = (config.rope_parameters or {}).get("rope_theta", 10000.0)
    if theta != 10000.0:
        found["rope_theta"] = theta
    return found


def export_meta(
    model: Path,
    output: Path,
    *,
    dtype: str | None = None,
    on_bytes: Callable[[int], object] = lambda _: None,
) -> list[Path]:
    """Writes a LLaMA in Meta's layout, in constant memory, and returns the files.

    Args:
        model: A Hugging Face folder, such as one that was merged.
        output: A folder; made where missing.
        dtype: What weights are written in; by default what they are stored in.
        on_bytes: Told of written bytes as they come.

    Raises:
        ModelError: It is no LLaMA.
        CheckpointError: The weights are incomplete or broken.
        OutputError: The folder cannot be written, or holds such a model already.
    """
    plans, settings = plans_of(model, dtype)
    if (output / WEIGHTS).exists():
        raise OutputError(f"{output} holds {WEIGHTS} already", todo="choose another folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_torch_file(plans, output / WEIGHTS, on_bytes=on_bytes)
        text = json.dumps(settings, indent=2) + "\n"
        write_atomically(output / PARAMS, text.encode())
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror}") from error
    return [output / WEIGHTS, output / PARAMS]


def _renamed(plan: TensorPlan, config: LlamaConfig) -> TensorPlan:
    if plan.name in _TOP:
        return replace(plan, name=_TOP[plan.name])
    layer, _, rest = plan.name.removeprefix("model.").partition(".")[2].partition(".")
    module = rest.removesuffix(".weight")
    name = f"layers.{layer}.{_IN_LAYER[module]}.weight"
    heads = {
        "self_attn.q_proj": config.num_attention_heads,
        "self_attn.k_proj": config.num_key_value_heads,
    }.get(module)
    if heads is None:
        return replace(plan, name=name)
    rows, columns = plan.shape
    # Meta rotates neighbouring rows of a head, Hugging Face those of its two halves.
    halves = Planned.of(plan).view(heads, 2, rows // heads // 2, columns)
    neighbours = halves.transpose(1, 2).reshape(rows, columns)
    return cast(Planned, neighbours).plan(name)


def _feed_forward(dim: int, size: int) -> dict[str, Any]:
    """Returns the fields by which Meta's code computes the size of the feed-forward layers."""
    base = int(2 * 4 * dim / 3)
    exact = size / base
    for multiplier in (*_MULTIPLIERS, exact, math.nextafter(exact, math.inf)):
        for multiple in _MULTIPLES:
            wide = base if multiplier is None else int(multiplier * base)
            if multiple * -(-wide // multiple) == size:
                found: dict[str, Any] = {"multiple_of": multiple}
                return found if multiplier is None else {**found, "ffn_dim_multiplier": multiplier}
    raise ModelError(f"feed-forward layers of {size} in a model of {dim} cannot be written so")
