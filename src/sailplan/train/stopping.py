"""A run that is asked to stop saves and ends at a step that all ranks agree on.

Signals and the stop file reach one rank, or all at different times. Each tells `trainer.votes`, and
after the step, the save or the held-out batch in which any of them was asked, all stop alike: the
checkpoint of this step is saved where there is none yet, an evaluation is given up, and nothing is
concluded (no best weights are loaded, no final model is saved), since the run goes on another time.
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from sailplan.data.ranks import wait_for_ranks
from sailplan.errors import StoppedError
from sailplan.run.lock import hold
from sailplan.run.paths import RunPaths
from sailplan.run.state import ended
from sailplan.train.requests import CAUSES, Requests

if TYPE_CHECKING:
    from sailplan.train.trainer import Trainer


class EvaluationGivenUpError(StoppedError):
    """The ranks agreed to stop in the middle of an evaluation."""


class AgreedStop(TrainerCallback):
    """Has the ranks stop together where one of them is asked to.

    It comes after all other callbacks, so that training has begun for them too.

    Args:
        trainer: The trainer.
        requests: What asks this rank.
        paths: The run's directory.
    """

    def __init__(self, trainer: Trainer, requests: Requests, paths: RunPaths) -> None:
        self._trainer, self._requests, self._paths = trainer, requests, paths
        self._saved_step = self._goes_on_from = -1
        self.cause: str | None = None
        """What the ranks stop for, once they have agreed to."""
        for cause in CAUSES:
            trainer.votes.ask(cause, partial(self._agree, cause))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Locks the directory, makes up for an evaluation that is owed, and begins to listen."""
        if state.is_world_process_zero:
            hold(self._paths.lock_file, self._requests.launchers)
        self._saved_step = state.global_step if state.global_step else -1
        if owes_evaluation(args, state):
            self._trainer.make_up_evaluation()
        self._requests.begin(self._trainer.votes.cast)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Has the ranks agree.

        Raises:
            EvaluationGivenUpError: They stop.
        """
        self._trainer.votes.count_up(args, state, control)
        if self.cause is not None:
            raise EvaluationGivenUpError(self.sentence(state))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Has the ranks agree, so that a stop asked for in a save ends at this very step."""
        self._saved_step = state.global_step
        self._trainer.votes.count_up(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keeps the end of an epoch from evaluating and saving once more."""
        if self.cause is not None:
            self._settle(state, control)

    def _agree(
        self,
        cause: str,
        _count: int,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
    ) -> None:
        self.cause = self.cause or cause
        self._settle(state, control)

    def _settle(self, state: TrainerState, control: TrainerControl) -> None:
        """Sets what is still to be done: a save, where this step has none."""
        control.should_evaluate = False
        control.should_save = self._saved_step != state.global_step
        control.should_training_stop = True

    def sentence(self, state: TrainerState) -> str:
        """Says where the run stopped, why, and how it goes on."""
        again = shlex.join(["sailplan", "train", str(self._paths.path)])
        done = f"stopped at step {state.global_step} of {state.max_steps}, as asked ({self.cause})"
        return f"{done}; go on with: {again}"

    def leave(self) -> None:
        """Ends this rank together with the others where they have agreed to stop.

        Whoever left before the others would have them killed: torch's agent takes its exit code
        for a failure.

        Raises:
            StoppedError: They have; what they saved is whole.
        """
        if self.cause is None:
            return
        state = self._trainer.state
        if state.is_world_process_zero:
            self._paths.stop_file.unlink(missing_ok=True)
            ended(self._paths, StoppedError.exit_code, f"as asked ({self.cause})")
        with suppress(RuntimeError):  # torch's agent was killed, and kills nobody any more
            wait_for_ranks()  # however long the first one takes with its checkpoint
            self._requests.end()
            wait_for_ranks()
        if state.is_world_process_zero:
            ended(self._paths, StoppedError.exit_code, f"asked by {self.cause}")
        raise StoppedError(self.sentence(state))


def owes_evaluation(args: TrainingArguments, state: TrainerState) -> bool:
    """Says whether the step that a run goes on from was to be evaluated, and was not."""
    step, epoch = state.global_step, state.epoch or 0.0
    if args.eval_strategy == IntervalStrategy.STEPS:
        ends = step >= state.max_steps
        is_due = args.eval_delay <= step and (ends or step % state.eval_steps == 0)
    elif args.eval_strategy == IntervalStrategy.EPOCH:
        is_due = args.eval_delay <= epoch and epoch == int(epoch)
    else:
        return False
    known = [record for record in state.log_history if record.get("step") == step]
    return bool(step) and is_due and not any("eval_loss" in record for record in known)
