"""What one rank does in `test_zero`: `accelerate launch` starts it with phases to go through.

Each rank writes what it saw to `OUT/rankN.json`.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

from deepspeed.utils import safe_get_full_grad
from transformers import TrainerCallback
from trl import SFTTrainer

from sailplan.errors import TrainingError
from sailplan.model.load import load_model
from sailplan.model.processor import load_processor
from sailplan.model.trainable import describe, lora_config
from sailplan.run.config import Run
from sailplan.train.errors import leave
from sailplan.train.guards.gradients import GradientGuard
from tests.support.batches import image_batch, trainer, training_arguments


def anonymous_bytes() -> int:
    """Memory of this process that is no file's: a mapped checkpoint does not count."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


class PeakMemory(threading.Thread):
    """Watches this process while the block runs."""

    def __enter__(self) -> PeakMemory:
        self.done = threading.Event()
        self.before = self.peak_bytes = anonymous_bytes()
        self.start()
        return self

    def run(self) -> None:
        while not self.done.wait(0.001):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()
        self.peak_bytes -= self.before


def load(folder: Path, out: Path) -> dict[str, Any]:
    """Loads a model that is large enough to measure."""
    args = training_arguments(out)  # Alive while the model loads: ZeRO-3 is known by it.
    with PeakMemory() as memory:
        model = load_model(Run(explicit={"model_name_or_path": str(folder)}))
    return {
        "rank": args.process_index,
        "peak_bytes": memory.peak_bytes,
        "full_bytes": sum(p.ds_numel * p.element_size() for p in model.parameters()),
        "held": sum(p.numel() for p in model.parameters()),
        "described": describe(model),
    }


class Compare(TrainerCallback):
    """Asks DeepSpeed for every gradient just before its step, which clears them."""

    def __init__(self, guard: GradientGuard) -> None:
        self.guard, self.trainer = guard, None
        self.seen: set[str] = set()
        self.never: list[list[str]] = []
        self.waiting: list[list[str]] = []
        self.whole: set[str] = set()

    def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
        assert isinstance(self.trainer, SFTTrainer)
        engine = self.trainer.accelerator.deepspeed_engine_wrapped.engine
        step, trainable = (
            engine.step,
            [(n, p) for n, p in model.named_parameters() if p.requires_grad],
        )

        def look_and_step() -> None:
            for name, parameter in trainable:
                gradient = safe_get_full_grad(parameter)
                if gradient is not None and gradient.count_nonzero():
                    self.seen.add(name)
            names = [name for name, _ in trainable if name not in self.seen]
            self.never.append([name.removeprefix("base_model.model.") for name in names])
            step()

        engine.step = look_and_step

    def on_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.waiting.append(list(self.guard.waiting))
        self.whole |= {n for n, p in model.named_parameters() if not hasattr(p, "ds_tensor")}


def train(folder: Path, out: Path, steps: int, **fields: Any) -> dict[str, Any]:
    """Trains all of the model, or an adapter, with the guard on."""
    run = Run(explicit={"model_name_or_path": str(folder), **fields})
    args = training_arguments(out)
    model, processor = load_model(run), load_processor(run)
    guard = GradientGuard(2)
    compare = Compare(guard)
    batches = [image_batch(processor, seed=seed) for seed in range(8)]
    compare.trainer = trainer(
        model,
        processor,
        batches,
        out,
        max_steps=steps,
        callbacks=[guard, compare],
        peft_config=lora_config(run, model),
    )
    error = ""
    try:
        compare.trainer.train()
    except TrainingError as stopped:
        error = str(stopped)
    return {
        "rank": args.process_index,
        "error": error,
        "never": compare.never,
        "waiting": compare.waiting,
        "whole": sorted(compare.whole),
    }


def main() -> None:
    tiny, large, out = map(Path, sys.argv[1:4])
    report: dict[str, Any] = {}
    for phase in sys.argv[4:]:
        if phase == "load":
            report[phase] = load(large, out)
        elif phase == "full":
            report[phase] = train(tiny, out, steps=3)
        else:
            report[phase] = train(tiny, out, steps=3, use_peft=True, load_in_4bit=True)
    (out / f"rank{report['full']['rank']}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
    leave()
