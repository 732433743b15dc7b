"""TRL's `SFTTrainer`, loading checkpoints of any number of ranks, and really the best weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from trl import SFTTrainer

from sailplan.train.say import say
from sailplan.train.world import loadable, seed_rank


class LoadingTrainer(SFTTrainer):
    """What of the trainer loads a checkpoint; see the module for what it does otherwise."""

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """Makes engine and optimizer, and loads their state, whatever ranks saved it."""
        with loadable(self, resume_from_checkpoint) as folder:
            return super()._prepare_for_training(
                max_steps, train_dataloader, folder and str(folder)
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads the weights, and leaves each that trains in the type that it had.

        TRL trains adapters of quantised weights in bfloat16, and PEFT loads them as float32.
        """
        model = self.model if model is None else model
        types = {name: one.dtype for name, one in model.named_parameters() if one.requires_grad}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, parameter in model.named_parameters():
            if name in types:
                parameter.data = parameter.data.to(types[name])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            seed_rank(self, Path(checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Loads both, and goes on with the learning rates of now where they are others.

        Else those of the checkpoint would win over what the run file says, without a word.
        """
        wanted = list(getattr(self.lr_scheduler, "base_lrs", ()))
        super()._load_optimizer_and_scheduler(checkpoint)
        before = list(getattr(self.lr_scheduler, "base_lrs", ()))
        if wanted == before or len(wanted) != len(before):
            return
        self.lr_scheduler.base_lrs = wanted
        for group, new, old in zip(self.optimizer.param_groups, wanted, before, strict=True):
            group["initial_lr"] = new
            group["lr"] = group["lr"] * new / old if old else new
        self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        say(f"learning_rate: goes on with {_shown(wanted)} instead of {_shown(before)}")

    def _load_best_model(self) -> None:
        """Loads the best checkpoint's weights.

        Trainer's own loader takes the names of a checkpoint for those of the module, and warns
        where they differ, as they do for most vision-language models (transformers 5.23).
        """
        best = self.state.best_model_checkpoint
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or isinstance(self.model, PeftModel):
            with loadable(self, best) as folder:
                self.state.best_model_checkpoint = folder and str(folder)
                super()._load_best_model()
            self.state.best_model_checkpoint = best
            return
        loaded = type(self.model).from_pretrained(Path(best))
        self.model.load_state_dict(loaded.state_dict())


def _shown(rates: list[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in dict.fromkeys(rates))
