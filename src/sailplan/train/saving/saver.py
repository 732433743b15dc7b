"""Saves checkpoints that are whole or do not count, and looks at what was saved.

The ranks write as transformers' trainer has them; what makes it safe lies around that. Before: is
there room? After: the first rank checks the weights and writes the manifest, in a thread beside
training, and only then old checkpoints go (docs/decisions/0019-manifest-last.md).
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sailplan.checkpoint import layout, manifest
from sailplan.data.ranks import wait_for_ranks
from sailplan.errors import CheckpointError, SailplanError, TrainingError
from sailplan.progress import waiting
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.train.optimizer import highest_rate
from sailplan.train.phase import PHASE
from sailplan.train.saving.describe import manifest_of
from sailplan.train.saving.place import Place
from sailplan.train.saving.space import bytes_at_least, check_room, full_disk
from sailplan.train.saving.weights import (
    ADAPTER,
    Digests,
    check_complete,
    check_model_names,
    check_values,
    saved_weights,
)

if TYPE_CHECKING:
    from sailplan.train.resume import Resumption
    from sailplan.train.trainer import Trainer

MOVED_STEPS = 10
"""Steps with a learning rate above zero, behind which weights that are still what they were at the
first checkpoint do not train."""

_IDLE_PRIORITY = 19


class Saver(TrainerCallback):
    """Stands around every save of a trainer; makes the first one early.

    Args:
        run: The run.
        trainer: Its trainer.
        resumption: What training goes on from.
    """

    def __init__(self, run: Run, trainer: Trainer, resumption: Resumption | None) -> None:
        self.run, self.trainer, self.directory = run, trainer, RunDirectory.of(run)
        self._keep = run.get("save_total_limit")
        self._early = bool(run.get("save_first_step")) and resumption is None
        self._saved_step = -1
        self._bytes = resumption.num_bytes if resumption else None
        self._names: Digests = {}
        self._before: Digests = {}
        self._learning_rate, self._moved_steps = 0.0, 0
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Notes the learning rate of the coming step: DeepSpeed moves it on within the step."""
        self._learning_rate = highest_rate(optimizer)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Has the first step saved, and tells what was wrong with the last save.

        Raises:
            SailplanError: It was; what the manifest or the weights lack.
        """
        self._moved_steps += self._learning_rate > 0
        if self._early and state.global_step == 1 and args.save_strategy != "no":
            control.should_save = True
        self._tell()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Waits until the last checkpoint is whole."""
        self.finish()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Surrounds the writing of a checkpoint, on every rank.

        Raises:
            OutputError: There is no room for it; nothing of it is left.
            CheckpointError, TrainingError: What was saved, now or before, is broken.
        """
        step, trainer = self.trainer.state.global_step, self.trainer
        folder = self.directory.checkpoint(step)
        PHASE.move("stepping", step)
        with PHASE.within("saving"):
            self.finish()
            self._make_way(folder)
            check_room(folder, self._expected_bytes())
            try:
                yield
                Place.of(trainer).write(folder, trainer.args.process_index)
            except Exception as error:
                self._refuse_full_disk(error, folder)
                raise
            wait_for_ranks()
            self._saved_step = step
            known = bool(self._names)
            self._begin(folder, first=self._early and step == 1)
            if not known:  # this process has not saved before: what cannot work fails at once
                self.finish()

    def has_saved(self, step: int) -> bool:
        """Says whether the step's checkpoint was saved by this process."""
        return step == self._saved_step

    def finish(self) -> None:
        """Waits until the last save is looked at and has its manifest.

        Raises:
            SailplanError: Something is wrong with it.
        """
        if self._thread is not None:
            self._thread.join(timeout=1.0)
            if self._thread.is_alive():
                words = "the checkpoint is read again and described"
                with PHASE.within("saving"), waiting(words):
                    self._thread.join()
            self._thread = None
        self._tell()

    def _tell(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _make_way(self, folder: Path) -> None:
        """Takes away what lies where the checkpoint is to be; it was never whole, or is another."""
        if self.trainer.args.process_index == 0 and folder.exists():
            layout.set_aside(folder, self.directory.aside)
        wait_for_ranks()

    def _expected_bytes(self) -> int:
        if self._bytes is None:
            return bytes_at_least(
                self.trainer.model,
                adapter=bool(self.run.get("use_peft")),
                masters=self.trainer.is_deepspeed_enabled,
            )
        return self._bytes

    def _refuse_full_disk(self, error: Exception, folder: Path) -> None:
        full = full_disk(error, folder)
        if full is not None:
            # What was just written is known to be broken, and its room is wanted.
            shutil.rmtree(folder, ignore_errors=True)
            raise full from error

    def _begin(self, folder: Path, *, first: bool) -> None:
        if self.trainer.args.process_index != 0:
            return
        # Everything that training may change meanwhile is read now.
        described = manifest_of(self.run, self.trainer, first=first)
        best = self.trainer.state.best_model_checkpoint
        moved, checkpoints = self._moved_steps >= MOVED_STEPS, self.directory.checkpoints()

        def complete() -> None:
            if hasattr(os, "setpriority") and sys.platform.startswith("linux"):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _IDLE_PRIORITY)
            self._check(folder, moved=moved)
            files = manifest.take_stock(folder, threads=1)
            made = described(files, time.time())
            self._bytes = made.num_bytes
            manifest.write(folder, made)
            layout.rotate(checkpoints, keep=self._keep, best=best and Path(best))

        self._thread = threading.Thread(target=self._guarded(complete, folder), daemon=True)
        self._thread.start()

    def _guarded(self, work: Callable[[], None], folder: Path) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except SailplanError as error:
                self._failure = error
            except Exception as error:  # told by the main thread, whatever it is
                self._failure = full_disk(error, folder) or error

        return run

    def _check(self, folder: Path, *, moved: bool) -> None:
        """Looks at the weights of a checkpoint.

        Raises:
            TrainingError: They are incomplete, empty, not finite, or do not train.
        """
        try:
            tensors = saved_weights(folder)
            if tensors is None:  # ranks' shards alone
                return
            digests = check_values(tensors)
            if self._names:
                check_complete(digests, self._names)
            elif (folder / ADAPTER).is_file():
                check_complete(digests, adapter_names(self.trainer.model))
            else:
                check_model_names(folder)
        except CheckpointError as error:
            raise TrainingError(
                f"what was saved to {folder} is broken: {error}",
                todo="the checkpoint before it is untouched",
            ) from error
        self._names = digests
        self._before = self._before or digests
        if moved and digests == self._before and self._before is not digests:
            raise TrainingError(
                f"{folder.name} has the very weights of the first checkpoint, after {MOVED_STEPS} "
                "steps and more at a learning rate above zero",
                todo="raise learning_rate, or train in float32: bfloat16 may round the steps away",
            )


def adapter_names(model: Any) -> frozenset[str]:
    """Returns the names under which an adapter's tensors must be saved."""
    from peft import get_peft_model_state_dict

    return frozenset(get_peft_model_state_dict(model, save_embedding_layers=False))
