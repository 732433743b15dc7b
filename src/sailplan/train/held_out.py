"""The loss on held-out rows, counted by tokens.

Trainer averages the means of batches, so that a batch of short rows weighs as much as one of long
rows, and on several ranks it counts the rows again that fill up an uneven last batch. Here the loss
is the sum over the trained tokens of the held-out rows, each row once, divided by their number: the
same on one process or many, whatever the batch size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from sailplan.data.loss_inputs import Taken, take_out
from sailplan.model.head import HeadPositions
from sailplan.train.evaluation import METRICS
from sailplan.train.phase import PHASE


class HeldOutTrainer(SFTTrainer):
    """TRL's trainer with another evaluation; see the module.

    Args:
        **arguments: What `SFTTrainer` takes.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.head = HeadPositions(self.model)

    def scored(self, model: Any, inputs: dict[str, Any]) -> tuple[Any, Taken]:
        """Returns what the head says at each label of a batch, `[1, labels]`, without gradients.

        Args:
            model: The model as it is called in training, wrapped where it is.
            inputs: A batch as `LossInputs` makes it.
        """
        inputs = self._prepare_inputs(inputs)
        taken = take_out(inputs)
        with torch.no_grad(), self.compute_loss_context_manager(), self.head.at(taken.positions):
            return model(**inputs, use_cache=False, fused_lm_head=True), taken

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        """Adds a batch to the sums of this evaluation; logits are never made.

        TRL's fused LM head computes the log-probabilities of the labels piece by piece, in
        evaluation as in training.
        """
        PHASE.move("computing held-out rows")
        outputs, taken = self.scored(model, inputs)
        found = [-outputs.log_probs, outputs.is_top1, outputs.label_mask]
        of_labels = torch.stack([values[0].float() for values in found], dim=1)
        of_rows = of_labels.new_zeros(taken.num_rows, 3)
        of_rows = of_rows.index_add(0, taken.label_rows, of_labels)
        # Rows that only fill up the last batch of some rank are left out by accelerate here.
        self._sums += self.accelerator.gather_for_metrics(of_rows).double().sum(dim=0).cpu()
        loss, _, tokens = of_rows.sum(dim=0)
        return loss / tokens.clamp(min=1), None, None

    def evaluation_loop(
        self, *arguments: Any, metric_key_prefix: str = "eval", **options: Any
    ) -> EvalLoopOutput:
        """Evaluates, and says loss and accuracy over all trained tokens of the rows."""
        self._sums = torch.zeros(3, dtype=torch.float64)
        with PHASE.within("evaluating"):
            output = super().evaluation_loop(
                *arguments, metric_key_prefix=metric_key_prefix, **options
            )
        loss, top1, tokens = self._sums.tolist()
        mean = loss / tokens if tokens else math.nan
        found = (mean, math.exp(min(mean, 700.0)), top1 / tokens if tokens else math.nan)
        for name, value in zip(METRICS, found, strict=True):
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output
