"""TRL's `SFTTrainer`, with micro batches of equal work and the head computed where a label is.

The held-out loss is counted by tokens, and the best weights are really loaded.

Trainer averages the means of batches, so that a batch of short rows weighs as much as one of long
rows, and on several ranks it counts the rows again that fill up an uneven last batch. Here the loss
is the sum over the trained tokens of the held-out rows, each row once, divided by their number: the
same on one process or many, whatever the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from sailplan.data.balance import Work
from sailplan.data.collator import Collator
from sailplan.data.counts import COUNTS, CountingCollator
from sailplan.data.sampler import Samples, StepSampler
from sailplan.data.streaming import EncodedStream
from sailplan.data.streaming.loader import training_loader
from sailplan.errors import DataError
from sailplan.train.evaluation import METRICS
from sailplan.train.finish import gather_where_it_fits
from sailplan.train.head import HeadPositions
from sailplan.train.loss_inputs import LossInputs, Taken, take_out
from sailplan.train.phase import PHASE
from sailplan.train.throughput import Throughput
from sailplan.train.votes import Votes


class Trainer(SFTTrainer):
    """The trainer of every run; see the module for what it does otherwise than TRL's.

    Args:
        collator: Makes the batches.
        work: What a model's samples cost; given the model once PEFT has wrapped it.
        **arguments: What `SFTTrainer` takes.
    """

    throughput: Throughput | None = None
    """Counts what is trained on, where it is given before training."""

    def __init__(
        self, *, collator: Collator, work: Callable[[Any], Work], **arguments: Any
    ) -> None:
        counting = CountingCollator(LossInputs(collate=collator))
        super().__init__(data_collator=counting, **arguments)
        self.collator, self.head, self._work = collator, HeadPositions(self.model), work
        self.votes = Votes(self.accelerator)
        self.add_callback(self.votes)
        self._sampler: StepSampler | None = None

    @property
    def sampler(self) -> StepSampler | None:
        """What draws the samples; None for a stream, and where the run groups them by length."""
        grouped = self.args.train_sampling_strategy == "group_by_length"
        if grouped or not isinstance(self.train_dataset, datasets.Dataset):
            return None
        if self._sampler is None:
            args = self.args
            shuffles = args.train_sampling_strategy != "sequential"
            seed = args.seed if args.data_seed is None else args.data_seed
            micro_batches = args.gradient_accumulation_steps * args.world_size
            self._sampler = StepSampler(
                Samples.of(self.train_dataset, self._work(self.model)),
                packs=self.collator.positions is not None,
                step_samples=args.train_batch_size * micro_batches,
                ranks=args.world_size,
                accumulation=args.gradient_accumulation_steps,
                rank=args.process_index,
                seed=seed if shuffles else None,
                step=lambda: self.state.global_step,
                drop_last=args.dataloader_drop_last,
            )
        return self._sampler

    def pad_instead(self) -> None:
        """Pads from now on; before the first batch is drawn."""
        self.collator.positions = None
        if self._sampler is not None:
            self._sampler.packs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = self.sampler
        if sampler is None:
            return super()._get_train_sampler(train_dataset)
        if not len(sampler):
            raise DataError(
                f"{len(sampler.lengths)} rows fill no step of {sampler.effective_batch_size} "
                "samples, and dataloader_drop_last leaves out what fills none",
                todo="remove dataloader_drop_last, or lower gradient_accumulation_steps",
            )
        return sampler

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Computes the loss as TRL does, the head at the positions that have a label alone."""
        positions = take_out(inputs).positions
        if self.label_smoother is not None:  # it computes from all logits
            del inputs["shift_labels"]
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self.head.at(positions):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        """Takes the batches of a step, under the eyes of `throughput`."""
        PHASE.move("waiting for data", self.state.global_step)
        if self.throughput:
            epoch_iterator = self.throughput.watch(epoch_iterator)
        taken: tuple[list[dict[str, Any]], torch.Tensor | int | None]
        taken = super().get_batch_samples(epoch_iterator, num_batches, device)
        PHASE.move("stepping")
        return taken

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Trains on one micro batch."""
        PHASE.move("computing a micro batch")
        loss: torch.Tensor = super().training_step(*arguments, **options)
        PHASE.move("stepping")
        return loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs.pop(COUNTS, None)  # of held-out batches, which nobody watches
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        return prepared

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs a record, with what was done since the last one where it is of training."""
        self._metrics["train"].pop("num_tokens", None)  # TRL's counts packed rows wrongly
        if self.throughput:
            self.throughput.add_to(logs, self.args, self.state)
        super().log(logs, start_time)

    def scored(self, model: Any, inputs: dict[str, Any]) -> tuple[Any, Taken]:
        """Returns what the head says at each label of a batch, `[1, labels]`, without gradients.

        Args:
            model: The model as it is called in training, wrapped where it is.
            inputs: A batch as `LossInputs` makes it.
        """
        PHASE.move("computing held-out rows")
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
            work=self._work(self.model).of_row if self.collator.positions is not None else None,
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
