"""TRL's `SFTTrainer`, with the held-out loss counted by tokens and the best weights really loaded.

Trainer averages the means of batches, so that a batch of short rows weighs as much as one of long
rows, and on several ranks it counts the rows again that fill up an uneven last batch. Here the loss
is the sum over the trained tokens of the held-out rows, each row once, divided by their number: the
same on one process or many, whatever the batch size.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from sailplan.data.streaming import EncodedStream
from sailplan.data.streaming.loader import training_loader
from sailplan.train.evaluation import METRICS
from sailplan.train.finish import gather_where_it_fits


class Trainer(SFTTrainer):
    """The trainer of every run; see the module for what it does otherwise than TRL's."""

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,  # noqa: ARG002  as in Trainer
        ignore_keys: list[str] | None = None,  # noqa: ARG002
    ) -> tuple[torch.Tensor, None, None]:
        """Adds a batch to the sums of this evaluation; logits are never made.

        TRL's fused LM head computes the log-probabilities of the labels piece by piece, in
        evaluation as in training.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        of_rows = torch.stack(
            [
                -outputs.log_probs.float().sum(dim=1),
                outputs.is_top1.float().sum(dim=1),
                outputs.label_mask.float().sum(dim=1),
            ],
            dim=1,
        )
        # Rows that only fill up the last batch of some rank are left out by accelerate here.
        self._sums += self.accelerator.gather_for_metrics(of_rows).double().sum(dim=0).cpu()
        loss, _, tokens = of_rows.sum(dim=0)
        return loss / tokens.clamp(min=1), None, None

    def evaluation_loop(
        self, *arguments: Any, metric_key_prefix: str = "eval", **options: Any
    ) -> EvalLoopOutput:
        """Evaluates, and says loss and accuracy over all trained tokens of the rows."""
        self._sums = torch.zeros(3, dtype=torch.float64)
        output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **options)
        loss, top1, tokens = self._sums.tolist()
        mean = loss / tokens if tokens else math.nan
        found = (mean, math.exp(min(mean, 700.0)), top1 / tokens if tokens else math.nan)
        for name, value in zip(METRICS, found, strict=True):
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    def get_train_dataloader(self) -> Any:
        """Returns what the rows are drawn with.

        A stream knows which rows are this process's: accelerate's loader would deal them again.
        """
        if not isinstance(self.train_dataset, EncodedStream):
            return super().get_train_dataloader()
        return training_loader(
            self.train_dataset,
            self.data_collator,
            batch_size=self._train_batch_size,
            accumulation=self.args.gradient_accumulation_steps,
            num_workers=self.args.dataloader_num_workers,
            prefetch=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _load_best_model(self) -> None:
        """Loads the best checkpoint's weights.

        Trainer's own loader takes the names of a checkpoint for those of the module, and warns
        where they differ, as they do for most vision-language models (transformers 5.23).
        """
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or isinstance(self.model, PeftModel):
            super()._load_best_model()
            return
        best = type(self.model).from_pretrained(Path(self.state.best_model_checkpoint))
        self.model.load_state_dict(best.state_dict())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model whole; under ZeRO-3 only where the first rank's host has room for it."""
        if self.deepspeed is not None:
            gather_where_it_fits(self.deepspeed, isinstance(self.model, PeftModel))
        super().save_model(output_dir, _internal_call)
