"""TRL's `SFTTrainer`, with micro batches of equal work and the head computed where a label is.

What a step meets is watched, a save is whole or does not count, and a stop is agreed upon: each of
them elsewhere, and called from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers.trainer_utils import TrainOutput

from sailplan.data.balance import Work
from sailplan.data.batch_rows import ROWS, BatchRows, NamingCollator, take_rows
from sailplan.data.collator import Collator
from sailplan.data.counts import COUNTS, CountingCollator
from sailplan.data.loss_inputs import LossInputs, take_out
from sailplan.data.ranks import wait_for_ranks
from sailplan.data.sampler import Samples, StepSampler
from sailplan.data.streaming import EncodedStream
from sailplan.data.streaming.loader import training_loader
from sailplan.errors import DataError
from sailplan.run.paths import RunPaths
from sailplan.train.finish import gather_where_it_fits
from sailplan.train.guards.bad_rows import refuse_broken
from sailplan.train.guards.loss import LossGuard
from sailplan.train.held_out import HeldOutTrainer
from sailplan.train.loading import LoadingTrainer
from sailplan.train.phase import PHASE
from sailplan.train.requests import Requests
from sailplan.train.resume import Resumption
from sailplan.train.saving.saver import Saver
from sailplan.train.stopping import AgreedStop, EvaluationGivenUpError
from sailplan.train.throughput import Throughput
from sailplan.train.votes import Votes


class Trainer(LoadingTrainer, HeldOutTrainer):
    """The trainer of every run; see the module for what it does otherwise than TRL's.

    Args:
        collator: Makes the batches.
        work: What a model's samples cost; given the model once PEFT has wrapped it.
        **arguments: What `SFTTrainer` takes.
    """

    throughput: Throughput | None = None
    """Counts what is trained on, where it is given before training."""
    saver: Saver | None = None
    """Stands around each save, where it is given before training."""
    save_sharded = False
    """Whether ZeRO-3 never gathers the weights to save them."""
    resumption: Resumption | None = None
    """What training goes on from, where it does."""
    loss_before = 0.0
    """What the losses that were logged before this process went on had added up to."""
    stop: AgreedStop | None = None
    """How the ranks stop together, where `heed` was called before training."""
    loss_guard: LossGuard | None = None
    """Watches the losses and the gradient of every step, where it is given before training."""

    def __init__(
        self, *, collator: Collator, work: Callable[[Any], Work], **arguments: Any
    ) -> None:
        naming = NamingCollator(CountingCollator(LossInputs(collate=collator)))
        super().__init__(data_collator=naming, **arguments)
        self.rows: list[BatchRows] = []  # of the micro batches of this step, on this rank
        self.collator, self._work = collator, work
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
        smooths = self.label_smoother is not None  # it computes from all logits
        if smooths:
            del inputs["shift_labels"]
        with nullcontext() if smooths else self.head.at(positions):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return self.loss_guard.see(loss) if self.loss_guard and not return_outputs else loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if self.loss_guard:
            self.loss_guard.judge(norm)
        return norm

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        """Takes the batches of a step, under the eyes of `throughput`."""
        PHASE.move("waiting for data", self.state.global_step)
        if self.throughput:
            epoch_iterator = self.throughput.watch(epoch_iterator)
        taken: tuple[list[dict[str, Any]], torch.Tensor | int | None]
        taken = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.rows = take_rows(taken[0])
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
        refuse_broken(inputs.pop(ROWS, None))
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        return prepared

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs a record, with what was done since the last one where it is of training."""
        self._metrics["train"].pop("num_tokens", None)  # TRL's counts packed rows wrongly
        if self.throughput:
            self.throughput.add_to(logs, self.args, self.state)
        if "train_loss" in logs and self.loss_before:  # of this process alone until here
            logs["train_loss"] = self.loss_before + self._total_loss_scalar
            logs["train_loss"] /= self.state.global_step
        if self.loss_guard:
            self.loss_guard.correct(logs)
        super().log(logs, start_time)

    def get_train_dataloader(self) -> Any:
        """Returns what the rows are drawn with.

        A stream knows which rows are this process's: accelerate's loader would deal them again.
        """
        if not isinstance(self.train_dataset, EncodedStream):
            return super().get_train_dataloader()
        loader = training_loader(
            self.train_dataset,
            self.data_collator,
            batch_size=self._train_batch_size,
            accumulation=self.args.gradient_accumulation_steps,
            work=self._work(self.model).of_row if self.collator.positions is not None else None,
            num_workers=self.args.dataloader_num_workers,
            prefetch=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory,
        )
        if self.resumption is not None:
            self.resumption.place_stream(loader.dataset)
        return loader

    def heed(self, requests: Requests, paths: RunPaths) -> None:
        """Has all ranks stop together where one is asked to; the last thing before training."""
        self.stop = AgreedStop(self, requests, paths)
        self.add_callback(self.stop)

    def leave_if_stopped(self) -> None:
        """Ends this rank together with the others where they have agreed to stop.

        Raises:
            StoppedError: They have; what they saved is whole.
        """
        if self.stop is not None:
            self.stop.leave()

    def make_up_evaluation(self) -> None:
        """Evaluates the checkpoint that training goes on from, as it would have been then."""
        if self._determine_best_metric(metrics=self._evaluate(None, None), trial=None):
            best = RunPaths(Path(self.args.output_dir)).checkpoint(self.state.global_step)
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None

    def _run_epoch(self, **options: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**options)
        else:  # it goes on from its last step: only what comes after training is left
            self.control.should_training_stop = True

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        try:
            super()._maybe_log_save_evaluate(*arguments, **options)
        except EvaluationGivenUpError:  # what is still to be done is settled
            super()._maybe_log_save_evaluate(*arguments, **options)

    def _finalize_training(self, *arguments: Any, **options: Any) -> TrainOutput:
        if self.stop is None or self.stop.cause is None:
            return super()._finalize_training(*arguments, **options)
        # Nothing is concluded: the run goes on another time. Trackers close.
        self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False
        return TrainOutput(self.state.global_step, math.nan, {})

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Saves a checkpoint that is whole or does not count, once a step."""
        if self.saver is None:
            super()._save_checkpoint(model, trial)
        elif not self.saver.has_saved(self.state.global_step):
            with self.saver.saving():
                super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model whole; under ZeRO-3 only where the first rank's host has room for it."""
        if self.deepspeed is not None:
            is_adapter = isinstance(self.model, PeftModel)
            gather_where_it_fits(self.deepspeed, is_adapter, sharded=self.save_sharded)
        with PHASE.within("saving"):
            super().save_model(output_dir, _internal_call)
            wait_for_ranks()  # what follows is a collective, and the first may write for long
