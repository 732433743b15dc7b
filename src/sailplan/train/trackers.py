"""One run stays one run for its trackers, however often it is stopped and goes on."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sailplan.files import write_atomically
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory

_IDENTITY = {"wandb": ("WANDB_RUN_ID", 4), "comet_ml": ("COMET_EXPERIMENT_KEY", 16)}
"""The variable by which a tracker knows a run, and how many random bytes it takes."""


class OneTrackedRun(TrainerCallback):
    """Gives TensorBoard one folder, and W&B and Comet one id, for the life of a run directory.

    Its making sets the variables that the trackers read when the trainer is made and when training
    begins; then they are as before. What the user has set wins. The ids are kept in the directory.

    Args:
        run: The run.
        args: Its `SFTConfig`.
        checkpoint: The checkpoint that training goes on from.
    """

    def __init__(self, run: Run, args: TrainingArguments, checkpoint: Path | None) -> None:
        self.directory = RunDirectory.of(run)
        self.step = _step_of(checkpoint)
        self.ids = {}
        variables: dict[str, str] = {}
        known = _read(self.directory.trackers_file)
        for tracker in args.report_to:
            if tracker in _IDENTITY:
                name, num_bytes = _IDENTITY[tracker]
                self.ids[tracker] = os.environ.get(name) or known.get(tracker) or ""
                self.ids[tracker] = self.ids[tracker] or secrets.token_hex(num_bytes)
                variables[name] = self.ids[tracker]
        if "wandb" in self.ids:
            variables["WANDB_RESUME"] = os.environ.get("WANDB_RESUME", "allow")
            variables["WANDB_DIR"] = os.environ.get("WANDB_DIR", str(self.directory.path))
        self.curves: Path | None = None
        if "tensorboard" in args.report_to:
            written = os.environ.get("TENSORBOARD_LOGGING_DIR")
            self.curves = Path(written or self.directory.curves).expanduser()
            variables["TENSORBOARD_LOGGING_DIR"] = str(self.curves)
        self.before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Makes ready what the trackers write into; they begin before any other callback."""
        if not state.is_world_process_zero:
            return
        if "wandb" in self.ids:  # else it would write to a folder of its own choice
            self.directory.path.mkdir(parents=True, exist_ok=True)
        if self.curves is not None and any(self.curves.glob("events.out.tfevents.*")):
            from torch.utils.tensorboard import SummaryWriter

            # What an earlier try wrote behind the checkpoint is hidden from now on.
            SummaryWriter(log_dir=str(self.curves), purge_step=self.step + 1).close()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keeps the ids, and leaves the environment as it was."""
        if state.is_world_process_zero and self.ids:
            known = {**_read(self.directory.trackers_file), **self.ids}
            text = json.dumps(known, indent=2) + "\n"
            write_atomically(self.directory.trackers_file, text.encode())
        for name, value in self.before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _step_of(checkpoint: Path | None) -> int:
    """Returns the step that training goes on from, 0 where it starts anew."""
    try:
        state = json.loads((checkpoint or Path()).joinpath("trainer_state.json").read_bytes())
        return int(state["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # Trainer tells what is wrong with a checkpoint


def _read(path: Path) -> Mapping[str, str]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
