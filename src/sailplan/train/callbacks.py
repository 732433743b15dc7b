"""Callbacks that write down and show how a run goes."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import datasets
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sailplan.data.facts import split_facts
from sailplan.files import write_atomically
from sailplan.plan.measured import WORTH_TELLING
from sailplan.records import to_json
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.run.metrics import append_metrics
from sailplan.run.paths import RunPaths
from sailplan.train.rank_log import LOG

if TYPE_CHECKING:
    from sailplan.data.prepare import Prepared

_RATES = (
    ("tokens_per_s", "{:.0f} tokens/s", 0.0),
    ("mfu", "{:.0%} of peak", 0.0),
    ("data_wait_share", "{:.0%} waiting for data", WORTH_TELLING),
)
"""What of the rates a plain line of progress has, how, and above which value."""


class MetricsFile(TrainerCallback):
    """Appends every log record to the run's JSON-lines file, with its step and wall time.

    Args:
        run: The run, whose directory is claimed when training begins: by then model and data have
            proven good on every rank.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.directory = run, RunDirectory.of(run)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Claims the directory, and says where training goes on."""
        if state.is_world_process_zero:
            self._begin(state)
        LOG.begin(self.directory.logs)

    def _begin(self, state: TrainerState) -> None:
        goes_on = self.directory.began_at() is not None
        self.directory.begin(self.run)
        if goes_on and self.directory.metrics_file.stat().st_size:
            self._write({"step": state.global_step, "resumed": True})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes one line."""
        if state.is_world_process_zero and logs:
            self._write({"step": state.global_step, **logs})

    def _write(self, record: dict[str, Any]) -> None:
        append_metrics(self.directory.metrics_file, record)


class DataFile(TrainerCallback):
    """Writes down what the run trains on and is evaluated on, in numbers, when training begins.

    Args:
        paths: The run's; the directory must be there by then.
        data: Its encoded rows; of a stream nothing is known before it is read.
    """

    def __init__(self, paths: RunPaths, data: Prepared) -> None:
        self._file, self._data = paths.data_file, data

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Writes."""
        if not state.is_world_process_zero:
            return
        splits = {"train": self._data.train, "eval": self._data.eval}
        told = {
            "splits": [
                to_json(split_facts(name, rows))
                for name, rows in splits.items()
                if isinstance(rows, datasets.Dataset)
            ],
            "notes": list(self._data.notes),
        }
        text = json.dumps(told, ensure_ascii=False, indent=2) + "\n"
        # Lone surrogates, which names of files may hold, are no text.
        write_atomically(self._file, text.encode("utf-8", errors="replace"))


class PlainProgress(TrainerCallback):
    """Prints progress as plain lines, for logs where a bar would be noise."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes where training begins."""
        self._started, self._first_step = None, state.global_step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock with the first step: an evaluation before it is none of the steps."""
        if self._started is None:
            self._started = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Prints the step, its metrics, and the time that is left."""
        if not state.is_world_process_zero or not logs:
            return
        shown = ("loss", "eval_loss", "grad_norm", "learning_rate", "train_loss")
        metrics = "  ".join(f"{name} {logs[name]:.4g}" for name in shown if name in logs)
        for name, text, least in _RATES:
            if logs.get(name, 0.0) > least:
                metrics += f"  {text.format(logs[name])}"
        done = state.global_step - self._first_step
        left = ""
        if self._started is not None and done > 0 and state.global_step < state.max_steps:
            seconds = (time.monotonic() - self._started) / done
            remaining = seconds * (state.max_steps - state.global_step)
            left = f"  {seconds:.2f} s/step, {remaining / 60:.1f} min left"
        print(f"step {state.global_step}/{state.max_steps}  {metrics}{left}", flush=True)
