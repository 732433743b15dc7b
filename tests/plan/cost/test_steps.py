"""Optimizer steps are counted as Trainer counts them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from sailplan.plan.cost.steps import count_steps


def test_steps_of_the_articles_run_are_129() -> None:
    for rows in (1345, 1350):
        steps = count_steps(rows=rows, micro_batch=4, accumulation=8, ranks=1, epochs=3)
        assert (steps.per_epoch, steps.total) == (43, 129)


def trainers_steps(
    folder: Path, *, rows: int, micro: int, accumulation: int, ranks: int, **options: Any
) -> tuple[int, int]:
    """What the real Trainer makes of it: steps of an epoch, and of the run."""
    import numpy as np
    import torch
    from torch.utils.data import DataLoader
    from transformers import Trainer, TrainingArguments

    from sailplan.data.balance import Work
    from sailplan.data.sampler import Samples, StepSampler

    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        **options,
    )
    trainer = Trainer(model=torch.nn.Linear(1, 1), args=args, train_dataset=list(range(rows)))
    ones = np.ones(rows, dtype=np.int64)
    sampler = StepSampler(
        Samples(lengths=ones, image_tokens=0 * ones, work=Work()),
        packs=True,
        step_samples=args.train_batch_size * accumulation * ranks,
        ranks=ranks,
        accumulation=accumulation,
        rank=0,
        seed=0,
        step=lambda: 0,
        drop_last=args.dataloader_drop_last,
    )
    dealt = DataLoader(list(range(rows)), batch_sampler=sampler)
    _, per_epoch, *_, max_steps = trainer.set_initial_training_values(args, dealt)
    return per_epoch, max_steps


OPTIONS: list[dict[str, Any]] = [
    {"num_train_epochs": 3},
    {"num_train_epochs": 0.4, "dataloader_drop_last": True},
    {"max_steps": 7},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_equal_the_trainers_own(tmp_path: Path, options: dict[str, Any]) -> None:
    for rows, micro, accumulation, ranks in itertools.product(
        (33, 64, 1345), (1, 4), (1, 8), (1, 2, 8)
    ):
        if options.get("dataloader_drop_last") and rows < micro * accumulation * ranks:
            continue  # no step at all: refused before training
        told = count_steps(
            rows=rows,
            micro_batch=micro,
            accumulation=accumulation,
            ranks=ranks,
            epochs=options.get("num_train_epochs", 3),
            max_steps=options.get("max_steps", -1),
            drop_last=options.get("dataloader_drop_last", False),
        )
        theirs = trainers_steps(
            tmp_path, rows=rows, micro=micro, accumulation=accumulation, ranks=ranks, **options
        )
        assert (told.per_epoch, told.total) == theirs
