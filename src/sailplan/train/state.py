"""Keeps the run's state file while it trains, so that others can see how far it is."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sailplan.processes import launchers_of
from sailplan.run.paths import RunPaths
from sailplan.run.state import RunState, keep, write_state

STEP_EVERY_S = 5.0
"""Steps are written so often at most."""

LOG_EVERY_S = 1.0
"""Log records are; a file that is synced more often would cost a run of short steps its time."""


class StateFile(TrainerCallback):
    """Says on the first rank that the run runs, and how far it is.

    It says nothing of the end, which is not here: the model is still to be saved. `ended` of
    `sailplan.run.state` does. Where the file cannot be written the run goes on; it is for those
    who look at it alone.

    Args:
        paths: The run's; the directory must be there when training begins.
    """

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self._launcher = next(iter(launchers_of(os.environ)), None)
        self._started_at = 0.0
        self._written = float("-inf")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says that it runs."""
        keep(self.paths)
        self._started_at = time.time()
        self._write(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says how far it is."""
        self._write(state, every_s=STEP_EVERY_S)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says that it is alive, within a long step."""
        self._write(state, every_s=STEP_EVERY_S)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says that it is alive, within a long evaluation."""
        self._write(state, every_s=STEP_EVERY_S)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says how far it is, as the metrics do."""
        self._write(state, every_s=LOG_EVERY_S)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says how far it is, as the checkpoint does."""
        self._write(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says that all steps are done, or why no more are wanted."""
        why = ""
        if state.global_step < state.max_steps:
            why = f"ended after {state.global_step} of {state.max_steps} steps"
            if args.metric_for_best_model and state.best_metric is not None:
                name = "eval_" + args.metric_for_best_model.removeprefix("eval_")
                why += f": {name} did not become better than {state.best_metric:.4g}"
        self._write(state, why=why)

    def _write(self, state: TrainerState, *, every_s: float = 0.0, why: str = "") -> None:
        if not state.is_world_process_zero or time.monotonic() - self._written < every_s:
            return
        now = RunState(
            state="running",
            step=state.global_step,
            max_steps=state.max_steps,
            why=why,
            pid=os.getpid(),
            launcher=self._launcher,
            host=socket.gethostname(),
            started_at=self._started_at,
            updated_at=time.time(),
        )
        with contextlib.suppress(OSError):
            write_state(self.paths.state_file, now)
        self._written = time.monotonic()
