"""A small copy of a model is trained, packed if it can be, saved, merged and read back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sailplan.preflight import children
from sailplan.preflight.finding import Finding, failed, ok, unchecked
from sailplan.preflight.model.drawn import write_rows
from sailplan.preflight.model.small import MOST_BYTES, small_config, write_small
from sailplan.progress import waiting
from sailplan.sizes import shown_bytes

if TYPE_CHECKING:
    from sailplan.preflight.model.reading import Model

TIMEOUT_S = 600.0
COPY, ADAPTER, MERGED = "copy", "adapter", "merged"
"""Folders of a trial."""
TOLERANCE = 1e-4
"""How far logits of the merged model may be off, as a part of the largest."""


def trains(model: Model, folder: Path, environment: Mapping[str, str]) -> Finding:
    """Does a small copy train, and does a packed row give what its samples give alone?"""
    import torch

    from sailplan.model.load import classes
    from sailplan.model.source import model_name

    name = model_name(model.run)
    config = small_config(model.config)
    auto_class, _ = classes(config, name)
    with torch.device("meta"):
        needed = 4 * auto_class.from_config(config).num_parameters()
    if needed > MOST_BYTES:
        return unchecked(f"a small copy would take {shown_bytes(needed)}, most of it vision tower")
    with waiting("writing a small copy"):
        write_small(config, model.processor, auto_class, folder / COPY)
    child = children.ask(
        "sailplan.train.sft_vlm",
        *_flags(model, folder),
        environment=environment,
        label="training a small copy",
        timeout_s=TIMEOUT_S,
    )
    if child.code != 0:
        return failed(
            f"a small copy does not train: {child.reason}",
            fix="the lines below say more",
            detail=child.last_words,
        )
    lines = child.words.splitlines()
    warned = [line for line in lines if "packing would change its loss" in line]
    batched = next((line for line in lines if line.startswith("batching: ")), "")
    if warned:
        return ok(
            f"a small copy trains by LoRA, padded: {warned[0].partition('its loss: ')[2]}",
            fix="nothing needs to be done: training looks at this itself, before the first step",
        )
    packed = batched.startswith("batching: pack")
    how = "a packed row gives what its samples give alone" if packed else "padded"
    return ok(f"a small copy trains by LoRA; {how}")


def merges(folder: Path, environment: Mapping[str, str]) -> Finding:
    """Does the trained copy become one model that computes the same, and loads by itself?"""
    child = children.ask(
        "sailplan.preflight.model.merged",
        str(folder),
        environment=environment,
        label="merging the small copy",
        timeout_s=TIMEOUT_S,
    )
    if child.answer is None:
        return failed(
            f"the small copy does not merge: {child.reason}",
            fix="the lines below say more",
            detail=child.last_words,
        )
    off, largest = float(child.answer["off"]), float(child.answer["largest"])
    if off > TOLERANCE * largest:
        return failed(
            f"the merged copy computes something else: logits off by {off:.2g} of {largest:.2g}",
            fix="please report the model: its weights have other names or shapes than its modules",
        )
    return ok(f"{child.answer['tensors']} tensors; merged logits are off by {off:.1g}")


def _flags(model: Model, folder: Path) -> list[str]:
    rows = write_rows(folder / "rows", with_image=model.family.is_vision)
    values = {
        "model_name_or_path": folder / COPY,
        "dataset_name": rows,
        "output_dir": folder / ADAPTER,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "use_peft": "true",
        "lora_r": 4,
        "use_cpu": "true",
        "bf16": "false",
        "report_to": "none",
    }
    if model.run.get("trust_remote_code"):
        values["trust_remote_code"] = "true"
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]
