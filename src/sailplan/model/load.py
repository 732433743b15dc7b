"""Loads the model, on the device and in the precision that the run asks for.

Precision is TRL's rule: the weights are float32 unless `dtype` is written, and mixed precision
(`bf16`) computes from them. A quantised model keeps `dtype` for what is not quantised and computes
in it, so a run file with `load_in_4bit` usually writes `dtype: bfloat16`. DeepSpeed has its
own rule for unquantised weights: where bf16 or fp16 is on it casts them to that and keeps float32
masters, and where none is, ZeRO-3 makes them float32, whatever `dtype` says (deepspeed 0.19).

The `SFTConfig` must exist, and stay referenced, before `load_model` is called: it sets up the
process group, and transformers looks at its DeepSpeed configuration to load a model under
`zero.Init`, where every tensor is split over the ranks as soon as it is made.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailplan.checkpoint.hub_folder import is_model
from sailplan.errors import ModelError
from sailplan.model.attention import FLASH, choose_attention
from sailplan.model.families import family_of
from sailplan.model.folder import explain
from sailplan.model.pixels import within_budget
from sailplan.model.precision import find_device, mixed_precision
from sailplan.model.source import load_config, model_name, source_options
from sailplan.model.vocabulary import resize_embeddings

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

    from sailplan.run.config import Run


def load_model(
    run: Run, *, checkpoint: Path | None = None, added_ids: Collection[int] = ()
) -> PreTrainedModel:
    """Returns the model, ready for `SFTTrainer`.

    A full fine-tuning that goes on takes its weights from the checkpoint here: Trainer's own
    loader matches none of the names under which most vision-language models are saved, and only
    warns. An adapter is loaded by Trainer, over the base model.

    On GPUs the weights go straight to this process's device. Under ZeRO-3 an unquantised model
    loads under `zero.Init`, shard by shard, from rank 0's mapped file; one of 4 bits is loaded
    whole, packed, by each rank, and DeepSpeed partitions it before the first step. It cannot
    partition 8-bit weights (`sailplan.run.quantised`).

    Args:
        run: The run.
        checkpoint: The checkpoint that training goes on from.
        added_ids: Ids of added tokens, for which the embeddings must have rows.

    Raises:
        ModelError: There is no such model, its weights are broken or incomplete, or it cannot
            be trained as asked.
    """
    name = model_name(run)
    # Where there are only ranks' shards, DeepSpeed puts them over the base model's weights.
    if checkpoint is not None and not run.get("use_peft") and is_model(checkpoint):
        name = str(checkpoint)
    config = load_config(run)
    auto_class, model_class = classes(config, name)
    text = config.get_text_config()
    pad_id = getattr(text, "pad_token_id", None)
    no_pad = pad_id is not None and pad_id < 0
    dtype = _dtype(run, config)
    implementation, _ = _attention(run, config, model_class, dtype)
    # sdpa is transformers' own default, and left to it: a part that lacks it falls to eager.
    options = source_options(run)
    if implementation == FLASH or run.get("attn_implementation") not in (None, "auto"):
        options["attn_implementation"] = implementation
    options |= {
        "dtype": dtype,
        "quantization_config": quantization_config(run, dtype),
        "device_map": _device_map(run),
    }
    if no_pad and checkpoint is None:  # -1: the last row of the embeddings would never train
        text.pad_token_id = None
        options["config"] = config
    options |= run.get("model_init_kwargs") or {}
    try:
        model, info = auto_class.from_pretrained(name, output_loading_info=True, **options)
    except Exception as error:
        raise explain(error, name, "weights") from error
    grids = getattr(model.config, "image_grid_pinpoints", None)
    if grids and run.get("max_pixels"):
        model.config.image_grid_pinpoints = within_budget(grids, run.get("max_pixels"))
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(
            f"{name} lacks the weights of {len(missing)} tensors, such as {missing[0]}",
            todo="they would be random: download the model again, or correct its config.json",
        )
    resize_embeddings(model, added_ids, seed=run.get("seed"))
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks 4-bit weights for good at the first
        # forward in evaluation: training on fails, and so do layers that are not whole blocks.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def attention(run: Run) -> tuple[str, str]:
    """Returns the attention implementation that `load_model` takes, and the reason for it."""
    config = load_config(run)
    return _attention(run, config, classes(config, model_name(run))[1], _dtype(run, config))


def quantization_config(run: Run, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Returns bitsandbytes' settings, None where the run does not quantise.

    Args:
        run: The run.
        dtype: What matrix products with 4-bit weights are computed in.
    """
    from transformers import BitsAndBytesConfig

    if run.get("load_in_4bit"):
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_type=run.get("bnb_4bit_quant_type"),
            bnb_4bit_use_double_quant=run.get("use_bnb_nested_quant"),
            bnb_4bit_quant_storage=run.get("bnb_4bit_quant_storage"),
        )
    if run.get("load_in_8bit"):
        return BitsAndBytesConfig(load_in_8bit=True)
    return None


def classes(config: PretrainedConfig, name: str) -> tuple[Any, type[PreTrainedModel]]:
    """Returns the Auto class to load with, and the class that it will make."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    choices = (
        (AutoModelForImageTextToText, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
        (AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
    )
    remote = getattr(config, "auto_map", None) or {}
    for auto_class, mapping in choices:
        if type(config) in mapping:
            return auto_class, mapping[type(config)]
        if auto_class.__name__ in remote:
            return auto_class, transformers.PreTrainedModel
    raise ModelError(
        f"{name} is a {config.model_type} model, which neither answers about images nor "
        "continues text",
        allowed="architectures of AutoModelForImageTextToText or AutoModelForCausalLM",
    )


def _dtype(run: Run, config: PretrainedConfig) -> torch.dtype:
    """Returns the dtype of the weights: what is written, or for `auto` what they are saved in."""
    import torch

    written = run.get("dtype")
    if written in (None, "auto"):  # composite configs may tell it of their parts alone
        return config.dtype or config.get_text_config().dtype or torch.float32
    dtype: torch.dtype = getattr(torch, written)
    return dtype


def _attention(
    run: Run, config: PretrainedConfig, model_class: type[PreTrainedModel], dtype: torch.dtype
) -> tuple[str, str]:
    device = find_device(use_cpu=bool(run.get("use_cpu")))
    return choose_attention(
        run.get("attn_implementation"),
        model_class=model_class,
        device=device,
        half_precision=mixed_precision(run, device) is not None or dtype.itemsize == 2,
        family=family_of(config),
    )


def _device_map(run: Run) -> dict[str, int] | None:
    """Returns this process's GPU, None where the weights must not be placed at loading.

    Loading on the GPU at once spares the host a copy of the model per process. ZeRO-3 and FSDP
    place shards themselves, and Trainer moves nothing on a CPU.
    """
    import torch
    from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

    on_gpu = find_device(use_cpu=bool(run.get("use_cpu"))).kind == "cuda"
    if not on_gpu or is_deepspeed_zero3_enabled() or is_fsdp_enabled():
        return None
    return {"": torch.cuda.current_device()}
