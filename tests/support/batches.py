"""Ready batches for the tiny models, and a trainer that takes them as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

IGNORED = -100


def image_batch(processor: Any, *, seed: int = 0, placeholder: str = "<image>") -> dict[str, Any]:
    """One row with an image before its trained words."""
    image = Image.new("RGB", (56, 56), (seed * 40 % 256, 200, 30))
    text = f"{placeholder} a product of {seed} red squares"
    batch = dict(processor(images=[image], text=text, return_tensors="pt"))
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][:, :-5] = IGNORED
    return batch


def text_batch(processor: Any, *, seed: int = 0) -> dict[str, Any]:
    """One row of words alone."""
    batch = dict(processor(text=f"a product of {seed} red squares", return_tensors="pt"))
    return {**batch, "labels": batch["input_ids"].clone()}


def trainer(
    model: Any,
    processor: Any,
    batches: Sequence[dict[str, Any]],
    folder: Path,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    peft_config: Any = None,
    optimizer_cls_and_kwargs: Any = None,
    **settings: Any,
) -> SFTTrainer:
    """TRL's trainer over the batches in their order, one a step, fp32 on CPU."""
    args = training_arguments(folder, **settings)
    rows = Dataset.from_dict(
        {
            "input_ids": [[0]] * len(batches),
            "labels": [[0]] * len(batches),
            "row": range(len(batches)),
        }
    )
    return SFTTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=processor,
        data_collator=lambda picked: dict(batches[picked[0]["row"]]),
        callbacks=list(callbacks),
        peft_config=peft_config,
        optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
    )


def training_arguments(folder: Path, **settings: Any) -> SFTConfig:
    """What `trainer` trains with; under ZeRO-3 it must be made before the model."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 1,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "disable_tqdm": True,
    }
    return SFTConfig(**{**defaults, **settings})
