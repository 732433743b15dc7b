"""Before the first step: does a packed row really give what its samples give alone?

Packing rests on conditions that no error guards: a family that reads positions otherwise, a layer
that carries state along the row, an attention that ignores where samples begin. Each would train
on with a loss that looks right. So two or three short samples of the run's own data go through the
model as it stands, wrapped and in its precision, once in one row and once each alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sailplan.data.loss_inputs import LossInputs
from sailplan.data.own_ids import check_samples
from sailplan.errors import DataError
from sailplan.model.packed_attention import SEGMENTS, attend_by_mask
from sailplan.model.parts import base_model
from sailplan.train.phase import PHASE
from sailplan.train.say import say

if TYPE_CHECKING:
    from sailplan.train.trainer import Trainer

_FLOOR_FULL, _FLOOR_HALF = 1e-3, 5e-2
"""Differences of log-probabilities that rounding explains, in float32 and in 16 bits."""
_ROUNDINGS = 5.0
"""How much more than padding a packed row may differ: padding is rounded otherwise as well."""


class PackingCheck(TrainerCallback):
    """Pads instead, with a warning, where a packed row differs from its samples.

    Args:
        trainer: The trainer of a run that packs.
        family: The name of the model's family, for the warning.
    """

    def __init__(self, trainer: Trainer, family: str) -> None:
        self.trainer, self.family = trainer, family

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks; no batch has been drawn yet."""
        rows = check_samples(self.trainer.train_dataset)
        if self.trainer.collator.positions is None or len(rows) < 2:
            return
        try:
            with PHASE.within("comparing a packed row with its samples"):
                packed, padded = differences(self.trainer, rows)
        except DataError:  # a broken image: the batch that has it says so, with its place
            return
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what a family makes of arguments that it does not know
            found = f"its forward takes no packed row: {type(error).__name__}: {error}"
        else:
            limit = _floor(self.trainer) + _ROUNDINGS * padded
            if packed <= limit:
                return
            found = (
                f"the log-probabilities of {len(rows)} samples in one row are off by {packed:.2g} "
                f"from those of each alone; padding is off by {padded:.2g}"
            )
        model = base_model(self.trainer.model)
        self.trainer.pad_instead()
        if model.config.get_text_config()._attn_implementation == SEGMENTS:
            attend_by_mask(model)
        say(f"warning: {self.family} is padded, since packing would change its loss: {found}")


def differences(trainer: Trainer, rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Returns how far packed and padded rows are from each alone.

    Both are the root mean square of the differences of the labels' log-probabilities, the largest
    of all ranks.

    Args:
        trainer: A trainer whose collator packs.
        rows: The samples.
    """
    packing = trainer.collator
    padding = copy.copy(packing)
    padding.positions = None
    alone = torch.cat([_log_probabilities(trainer, padding, [row]) for row in rows])
    found = torch.stack(
        [
            (_log_probabilities(trainer, collator, rows) - alone).square().mean().sqrt()
            for collator in (packing, padding)
        ]
    )
    packed, padded = trainer.accelerator.gather(found[None]).max(dim=0).values.tolist()
    return float(packed), float(padded)


def _log_probabilities(
    trainer: Trainer, collator: Any, rows: Sequence[Mapping[str, Any]]
) -> torch.Tensor:
    """Returns those of all labels, sample after sample."""
    model = trainer.model_wrapped
    was_training = model.training
    model.eval()
    try:
        outputs, _ = trainer.scored(model, LossInputs(collate=collator)(rows))
    finally:
        model.train(was_training)
    found: torch.Tensor = outputs.log_probs[0]
    return found.float()


def _floor(trainer: Trainer) -> float:
    args = trainer.args
    halves = {parameter.dtype for parameter in trainer.model.parameters()} & {
        torch.bfloat16,
        torch.float16,
    }
    return _FLOOR_HALF if args.bf16 or args.fp16 or halves else _FLOOR_FULL
