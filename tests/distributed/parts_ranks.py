"""What one rank does in `test_parts`: `accelerate launch` starts it.

Each rank writes what it saw to `OUT/rankN.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor
from transformers.integrations import is_deepspeed_zero3_enabled

from sailplan.model.load import load_model
from sailplan.model.parts import parameters_by_part
from sailplan.model.processor import load_processor
from sailplan.model.trainable import lora_config, trained_parts
from sailplan.run.config import Run
from sailplan.train.arguments import without_search
from sailplan.train.errors import leave
from sailplan.train.optimizer import optimizer_by_part
from sailplan.train.parts import every_rank_needs_images, settle_parts
from tests.support.batches import image_batch, text_batch, trainer, training_arguments

RATE = 4e-3
RATES = {"vision_tower_learning_rate": 2e-3, "projector_learning_rate": 8e-3}
Weights = dict[str, dict[str, Tensor]]


class Ranks:
    """Trains the tiny LLaVA again and again in this process."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.folder, self.out = folder, out

    def make(self, fields: dict[str, Any], *, words: bool = False, **settings: Any) -> Any:
        """Returns a trainer, its parts settled; with `words`, every other row has no image."""
        folder = str(settings.pop("folder", self.folder))
        run = Run(explicit={"model_name_or_path": folder, "learning_rate": RATE, **fields})
        search = without_search(settings.get("gradient_checkpointing_kwargs"))
        settings = {"learning_rate": RATE, "max_steps": 1, **search, **settings}
        args = training_arguments(self.out / "run", **settings)  # Before the model, for ZeRO-3.
        self.rank = args.process_index
        model, processor = load_model(run), load_processor(run)
        adapters = lora_config(run, model)
        self.trained = trained_parts(run, model, adapters)
        kinds = [image_batch, text_batch if words else image_batch]
        training = trainer(
            model,
            processor,
            [kinds[seed % 2](processor, seed=seed) for seed in range(8)],
            self.out / "run",
            peft_config=adapters,
            optimizer_cls_and_kwargs=optimizer_by_part(run, args, self.trained),
            **settings,
        )
        settle_parts(run, training.args, training.model)
        return training

    def frozen(self, **checkpointing: Any) -> dict[str, Any]:
        """Trains with a frozen tower, and a projector whose rate is zero."""
        fields = {"freeze": ["vision_tower"], "projector_learning_rate": 0}
        training = self.make(fields, optim="adamw_torch", max_steps=2, **checkpointing)
        before = weights(training.model)
        training.train()
        after, parts = weights(training.model), parameters_by_part(training.model)
        trained = {**after["projector"], **after["language_model"]}
        return {
            "moved": moved(before, after),
            "gradients": [n for n, p in parts["vision_tower"].items() if p.grad is not None],
            "state": num_state_elements(training),
            "trainable": sum(tensor.numel() for tensor in trained.values()),
        }

    def rates(self) -> dict[str, float]:
        """Returns how much larger each part's step is than at one rate for all."""
        steps = []
        for fields in ({}, RATES):
            training = self.make(fields, optim="sgd", max_grad_norm=0)
            before = weights(training.model)
            training.train()
            after = weights(training.model)
            steps.append({part: flat(after[part]) - flat(old) for part, old in before.items()})
        return {
            part: float(steps[1][part].double().norm() / plain.double().norm())
            for part, plain in steps[0].items()
        }

    def adapters(self, **checkpointing: Any) -> dict[str, Any]:
        """Trains adapters in all parts; those of the projector at a rate of zero."""
        fields = {"use_peft": True, "lora_vision": True, "projector_learning_rate": 0}
        fields["vision_tower_learning_rate"] = 1e-2
        training = self.make(fields, max_steps=3, **checkpointing)
        before = weights(training.model, trainable=True)
        training.train()
        return {"moved": moved(before, weights(training.model, trainable=True))}

    def resumed(self) -> dict[str, Any]:
        """Returns the rates after a resume, and the tensors that differ from a run without."""
        settings = {"max_steps": 2, "lr_scheduler_type": "linear", "save_strategy": "steps"}
        fields = {"freeze": ["vision_tower"], "projector_learning_rate": 8e-3}
        whole = self.make(fields, save_steps=1, **settings)
        whole.train()
        expected, rates = weights(whole.model), [g["lr"] for g in whole.optimizer.param_groups]
        checkpoint = str(self.out / "run" / "checkpoint-1")
        again = self.make(fields, folder=checkpoint, save_steps=9, **settings)
        again.train(resume_from_checkpoint=checkpoint)
        found = weights(again.model)
        return {
            "rates": [rates, [g["lr"] for g in again.optimizer.param_groups]],
            "initial": [g["initial_lr"] for g in again.optimizer.param_groups],
            "moved": moved(expected, found),
        }

    def words(self) -> list[bool]:
        """Trains on images on one rank and on words on the other, as no dummy image is needed."""
        needed = []
        for fields in ({"use_peft": True}, {"freeze": ["vision_tower", "projector"]}):
            training = self.make(fields, words=True, max_steps=2)
            needed.append(every_rank_needs_images(self.trained))
            if not needed[-1]:
                training.train()
        return needed


def weights(model: Any, *, trainable: bool = False) -> Weights:
    """Returns whole copies of the parameters of each part."""
    found: Weights = {}
    for part, parameters in parameters_by_part(model).items():
        chosen = {n: p for n, p in parameters.items() if p.requires_grad or not trainable}
        gathered = list(chosen.values()) if is_deepspeed_zero3_enabled() else []
        with deepspeed.zero.GatheredParameters(gathered):
            found[part] = {name: p.detach().clone() for name, p in chosen.items()}
    return found


def moved(before: Weights, after: Weights) -> dict[str, list[int]]:
    """Returns how many tensors of each part are no longer the same, and how many there are."""
    return {
        part: [sum(not t.equal(after[part][n]) for n, t in tensors.items()), len(tensors)]
        for part, tensors in before.items()
    }


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def num_state_elements(training: Any) -> int:
    """Returns the elements of Adam's first moments on all ranks."""
    optimizer = training.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    count = sum(state["exp_avg"].numel() for state in optimizer.state.values())
    total = torch.tensor(count)
    torch.distributed.all_reduce(total)
    return int(total)


def main() -> None:
    folder, out = map(Path, sys.argv[1:3])
    ranks = Ranks(folder, out)
    report: dict[str, Any] = {"rates": ranks.rates(), "words": ranks.words()}
    for kind in (False, True):
        checkpointing = {"gradient_checkpointing_kwargs": {"use_reentrant": kind}}
        report[f"frozen {kind}"] = ranks.frozen(**checkpointing)
        # TRL makes it reentrant under ZeRO-3.
        if kind or not is_deepspeed_zero3_enabled():
            report[f"adapters {kind}"] = ranks.adapters(**checkpointing)
    report["resumed"] = ranks.resumed()
    (out / f"rank{ranks.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
    leave()
