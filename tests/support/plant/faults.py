"""What can be planted: each function patches one thing of a module that was just imported.

It is called with the module and with the fault's other fields. At its top this file imports nothing
of the package, and nothing heavy: it is read at the start of every process of a test.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any


def _in_collator(module: ModuleType, step: int, act: Callable[[], object]) -> None:
    """Has something done before a batch is made, once `step` optimizer steps are done."""
    from sailplan.train.phase import PHASE

    collate = module.Collator.__call__

    def faulty(collator: Any, rows: Any) -> Any:
        if PHASE.step >= step:
            act()
        return collate(collator, rows)

    module.Collator.__call__ = faulty


def sleep_in_collator(module: ModuleType, *, step: int, seconds: float = 3600.0) -> None:
    """Sleeps while it makes a batch."""

    def sleep() -> None:
        time.sleep(seconds)

    _in_collator(module, step, sleep)


def sleep_in_worker(module: ModuleType) -> None:
    """Sleeps while a worker of a DataLoader makes its first batch."""
    from torch.utils.data import get_worker_info

    def sleep() -> None:
        if get_worker_info():
            time.sleep(3600)

    _in_collator(module, 0, sleep)


def stop_in_collator(module: ModuleType, *, step: int, after_s: float) -> None:
    """Stops the process as a debugger or a scheduler does, while it takes long over a batch."""

    def stop() -> None:
        time.sleep(after_s)
        os.kill(os.getpid(), signal.SIGSTOP)

    _in_collator(module, step, stop)


def keep_interpreter_in_collator(module: ModuleType, *, step: int, after_s: float) -> None:
    """Sleeps in C without giving back the interpreter's lock, so that no other thread runs."""

    def keep() -> None:
        time.sleep(after_s)
        ctypes.PyDLL(None).sleep(3600)

    _in_collator(module, step, keep)


def leave_out_all_reduce(module: ModuleType, *, step: int) -> None:
    """Keeps one step's gradients from the other ranks of DDP, which wait for them."""
    train = module.Trainer.training_step

    def faulty(trainer: Any, *arguments: Any, **options: Any) -> Any:
        if trainer.state.global_step != step:
            return train(trainer, *arguments, **options)
        with trainer.model_wrapped.no_sync():
            return train(trainer, *arguments, **options)

    module.Trainer.training_step = faulty


def save_slowly(module: ModuleType, *, seconds: float) -> None:
    """Takes long to save the optimizer, and writes something all the time."""
    from sailplan.train.phase import PHASE

    save = module.Trainer._save_optimizer_and_scheduler

    def faulty(trainer: Any, folder: Any) -> None:
        until = time.monotonic() + seconds
        with PHASE.within("saving"), open(os.devnull, "wb") as file:  # noqa: PTH123
            while time.monotonic() < until:
                file.write(bytes(2**20))
                time.sleep(0.1)
        save(trainer, folder)

    module.Trainer._save_optimizer_and_scheduler = faulty


PLANTS: dict[str, tuple[str, Callable[..., None]]] = {
    "sleep_in_collator": ("sailplan.data.collator", sleep_in_collator),
    "sleep_in_worker": ("sailplan.data.collator", sleep_in_worker),
    "stop_in_collator": ("sailplan.data.collator", stop_in_collator),
    "keep_interpreter_in_collator": ("sailplan.data.collator", keep_interpreter_in_collator),
    "save_slowly": ("sailplan.train.trainer", save_slowly),
    "leave_out_all_reduce": ("sailplan.train.trainer", leave_out_all_reduce),
}
"""By name: the module, and what patches it."""
