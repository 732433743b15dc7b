"""What one rank does in `test_quantised`: `accelerate launch` starts it with cases to train.

For each case it trains an adapter on quantised weights. What it held of them, and the losses, go to
`OUT/rankN.json`.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from transformers import TrainerCallback

from sailplan.model.load import load_model
from sailplan.model.processor import load_processor
from sailplan.model.trainable import lora_config
from sailplan.run.config import Run
from sailplan.train.errors import leave
from tests.support.batches import text_batch, trainer, training_arguments

LARGE_BYTES = 2**17
"""Smaller tensors than a shard of the smallest quantised weight are not counted."""


def quantised(model: Any) -> Iterator[Any]:
    """Yields the quantised weights."""
    kinds = (bitsandbytes.nn.Params4bit, bitsandbytes.nn.Int8Params)
    return (weight for weight in model.parameters() if isinstance(weight, kinds))


def storages(dtype: torch.dtype) -> dict[int, int]:
    """Returns all large tensors of a type that this process holds: address to bytes."""
    found = {}
    for thing in gc.get_objects():
        # Asked for its class, a library that is loaded when it is used would be loaded.
        if issubclass(type(thing), torch.Tensor) and thing.dtype == dtype:
            storage = thing.untyped_storage()
            if storage.nbytes() >= LARGE_BYTES:
                found[storage.data_ptr()] = storage.nbytes()
    return found


class Held(TrainerCallback):
    """Looks at what is held of the quantised weights between two steps."""

    def __init__(self, dtype: torch.dtype, before: dict[int, int]) -> None:
        self.dtype, self.before = dtype, before
        self.bytes: list[int] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        gc.collect()
        held = storages(self.dtype)
        self.bytes.append(sum(size for place, size in held.items() if place not in self.before))


def train(folder: Path, out: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Trains three steps; all ranks see the same rows."""
    settings = {"max_steps": 3, "optim": "sgd", "gradient_checkpointing": True}
    # A small adapter: where weights are packed in bfloat16, PEFT makes it of that, too.
    adapter = {"use_peft": True, "lora_r": 1, "lora_dropout": 0.0}
    run = Run(explicit={"model_name_or_path": str(folder), **adapter, **case})
    args = training_arguments(out, **settings)  # Alive while the model loads.
    dtype = {"uint8": torch.uint8, "bfloat16": torch.bfloat16}.get(
        str(run.get("bnb_4bit_quant_storage")), torch.uint8
    )
    dtype = torch.int8 if run.get("load_in_8bit") else dtype
    before = storages(dtype)  # DeepSpeed's engine of an earlier case may still be there
    torch.manual_seed(0)
    model, processor = load_model(run), load_processor(run)
    whole_bytes = sum(w.numel() * w.element_size() for w in quantised(model))
    held = Held(dtype, before)
    training = trainer(
        model,
        processor,
        [text_batch(processor, seed=seed // args.world_size) for seed in range(8)],
        out,
        callbacks=[held],
        peft_config=lora_config(run, model),
        **settings,
    )
    training.train()
    return {
        "rank": args.process_index,
        "whole_bytes": whole_bytes,
        "held_bytes": held.bytes,
        "losses": [entry["loss"] for entry in training.state.log_history if "loss" in entry],
    }


def main() -> None:
    folder, out = map(Path, sys.argv[1:3])
    cases: dict[str, Any] = json.loads(sys.argv[3])
    report = {name: train(folder, out, case) for name, case in cases.items()}
    rank = next(iter(report.values()))["rank"]
    (out / f"rank{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
    leave()
