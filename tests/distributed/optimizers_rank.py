"""Trains with every optimizer of `optim` under DeepSpeed; `test_optimizers` starts it.

Writes what became of each to `OUT/report.json`: the class that trained, or why it was refused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from transformers.training_args import OptimizerNames

from sailplan.errors import RunFileError
from sailplan.model.load import load_model
from sailplan.model.processor import load_processor
from sailplan.run.config import Run
from sailplan.train.errors import leave
from sailplan.train.optimizer_check import check_optimizer
from tests.support.batches import text_batch, trainer, training_arguments


def train(folder: Path, out: Path, name: str, zero: dict[str, Any]) -> list[Any]:
    """Returns the optimizer's class and whether the losses are those of a model that learns."""
    automatic = dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu"), "auto")
    automatic["gradient_accumulation_steps"] = automatic["gradient_clipping"] = "auto"
    settings = {"optim": name, "deepspeed": {**automatic, "zero_optimization": zero}}
    args = training_arguments(out, **settings)
    check_optimizer(args)
    run = Run(explicit={"model_name_or_path": str(folder)})
    model, processor = load_model(run), load_processor(run)
    training = trainer(model, processor, 3 * [text_batch(processor)], out, max_steps=3, **settings)
    training.train()
    losses = [entry["loss"] for entry in training.state.log_history if "loss" in entry]
    optimizer = training.accelerator.deepspeed_engine_wrapped.engine.basic_optimizer
    return [type(optimizer).__name__, losses[-1] < losses[0]]


def main() -> None:
    folder, out = map(Path, sys.argv[1:3])
    zero = json.loads(sys.argv[3])
    report: dict[str, Any] = {}
    for name in OptimizerNames:
        try:
            report[name.value] = train(folder, out, name.value, zero)
        except RunFileError as refused:
            report[name.value] = str(refused)
    (out / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
    leave()
