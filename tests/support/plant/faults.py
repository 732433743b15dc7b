"""What can be planted: each function patches one thing of a module that was just imported.

It is called with the module and with the fault's other fields. At its top this file imports nothing
of the package, and nothing heavy: it is read at the start of every process of a test.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
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


def meet_in_step(module: ModuleType, *, step: int, there: str) -> None:
    """Says once that so many steps are done, and waits in the next until asked to stop."""
    train = module.Trainer.training_step

    def faulty(trainer: Any, *arguments: Any, **options: Any) -> Any:
        if trainer.state.global_step == step:
            _meet(there)
        return train(trainer, *arguments, **options)

    module.Trainer.training_step = faulty


def meet_in_save(module: ModuleType, *, step: int, there: str) -> None:
    """Says once that a checkpoint's weights are written, and waits until asked to stop."""
    save = module.Trainer._save_optimizer_and_scheduler

    def faulty(trainer: Any, folder: Any) -> None:
        if trainer.state.global_step == step:
            _meet(there)
        save(trainer, folder)

    module.Trainer._save_optimizer_and_scheduler = faulty


def _meet(there: str) -> None:
    from sailplan.train.requests import REQUESTS

    if Path(there).exists():
        return
    Path(there).touch()
    while REQUESTS._cause is None:
        time.sleep(0.02)


def fail_in_step(module: ModuleType, *, step: int) -> None:
    """Fails as a bug does, once so many steps are done."""

    def fail() -> None:
        raise RuntimeError("the planted bug")

    _in_collator(module, step, fail)


def kill_in_step(module: ModuleType, *, step: int, behind: str) -> None:
    """Kills the process once so many steps are done, with the gradients of the next at hand.

    Args:
        module: The trainer's.
        step: The steps that are done.
        behind: A file that is waited for, since another thread writes it.
    """
    train = module.Trainer.training_step

    def faulty(trainer: Any, *arguments: Any, **options: Any) -> Any:
        loss = train(trainer, *arguments, **options)
        if trainer.state.global_step == step:
            _wait_for(behind)
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    module.Trainer.training_step = faulty


def _wait_for(path: str | None) -> None:
    while path is not None and not Path(path).exists():
        time.sleep(0.01)


def leave_logits(module: ModuleType, *, inputs: str, to: str) -> None:
    """Writes down what the trained model says of inputs, when it has been saved at the end.

    Args:
        module: The trainer's.
        inputs: A file of them, as `torch.save` writes it.
        to: The file of the logits, `[rows, tokens, vocabulary]` in float32.
    """
    import torch

    save = module.Trainer.save_model

    def telling(trainer: Any, output_dir: Any = None, _internal_call: bool = False) -> None:
        save(trainer, output_dir, _internal_call)
        if _internal_call:  # a checkpoint's
            return
        model = as_trained(trainer.model_wrapped)
        with torch.no_grad():
            logits = model(**torch.load(inputs), use_cache=False).logits
        if trainer.args.process_index == 0:
            torch.save(logits.float(), to)

    module.Trainer.save_model = telling


def as_trained(model: Any) -> Any:
    """Has a model evaluate, but 8-bit layers compute as they do in training, and returns it.

    On a CPU they quantise their inputs in evaluation alone, and fail at inputs of more than three
    dimensions, such as Llama-3.2-Vision's projector has (bitsandbytes 0.50).
    """
    model.eval()
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt":
            module.train()
    return model


def out_of_memory(
    module: ModuleType, *, most_tokens: int, step: int = 0, behind: str | None = None
) -> None:
    """Has a micro batch of more tokens end as CUDA does without memory, once steps are done.

    Args:
        module: The trainer's.
        most_tokens: What there is memory for.
        step: The steps that are done.
        behind: A file that is waited for, since another thread or rank writes it.
    """
    import torch

    from sailplan.train.phase import PHASE

    compute = module.Trainer.compute_loss

    def limited(trainer: Any, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        if PHASE.step >= step and inputs["input_ids"].numel() > most_tokens:
            _wait_for(behind)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return compute(trainer, model, inputs, *rest, **options)

    module.Trainer.compute_loss = limited


def eat_memory(module: ModuleType, *, most_tokens: int, mib_of_token: int) -> None:
    """Takes real memory for each token that a micro batch has too many."""
    compute = module.Trainer.compute_loss

    def hungry(trainer: Any, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        tokens = inputs["input_ids"].numel() - most_tokens
        eaten = [bytearray(b"1" * (mib_of_token << 20)) for _ in range(tokens)]
        loss = compute(trainer, model, inputs, *rest, **options)
        del eaten
        return loss

    module.Trainer.compute_loss = hungry


def eat_card(module: ModuleType, *, most_tokens: int) -> None:
    """Takes more memory than the card has for a micro batch of more tokens."""
    import torch

    compute = module.Trainer.compute_loss

    def hungry(trainer: Any, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        if inputs["input_ids"].numel() > most_tokens:
            torch.empty(1 << 45, dtype=torch.uint8, device=inputs["input_ids"].device)
        return compute(trainer, model, inputs, *rest, **options)

    module.Trainer.compute_loss = hungry


def out_of_memory_in_save(module: ModuleType, *, step: int, unless_sharded: bool = False) -> None:
    """Has the weights' save end for want of memory from a step on, where they are gathered."""
    import torch

    save = module.Trainer.save_model

    def limited(trainer: Any, *arguments: Any, **options: Any) -> Any:
        sharded = unless_sharded and trainer.save_sharded
        if trainer.state.global_step >= step and not sharded:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 15.00 GiB.")
        return save(trainer, *arguments, **options)

    module.Trainer.save_model = limited


def bad_loss(
    module: ModuleType, *, steps: list[int], micro_batch: int = 0, factor: str = "nan"
) -> None:
    """Multiplies the loss of one micro batch of each of those steps."""
    _of_micro_batch(module, steps, micro_batch, lambda loss: loss * float(factor))


def bad_gradient(module: ModuleType, *, steps: list[int], micro_batch: int = 0) -> None:
    """Makes the gradients of one micro batch of each of those steps infinite, not its loss."""

    def spoil(loss: Any) -> Any:
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss * 1.0  # the guard sees a loss whose gradient is fine

    _of_micro_batch(module, steps, micro_batch, spoil)


def _of_micro_batch(
    module: ModuleType, steps: list[int], micro_batch: int, change: Callable[[Any], Any]
) -> None:
    compute = module.SFTTrainer.compute_loss

    def changed(trainer: Any, *arguments: Any, **options: Any) -> Any:
        loss = compute(trainer, *arguments, **options)
        step, counts = trainer.state.global_step + 1, vars(trainer).setdefault("_counts", Counter())
        counts[change, step] += 1
        return change(loss) if step in steps and counts[change, step] == micro_batch + 1 else loss

    module.SFTTrainer.compute_loss = changed


def rot_files(module: ModuleType, *, cut: list[str], swapped: dict[str, str]) -> None:
    """Cuts files off once the rows are encoded, or overwrites them with what another holds."""
    prepare = module.prepare

    def prepared(*arguments: Any, **options: Any) -> Any:
        data = prepare(*arguments, **options)
        for path in map(Path, cut):
            path.write_bytes(path.read_bytes()[:200])
        for path, other in swapped.items():
            Path(path).write_bytes(Path(other).read_bytes())
        return data

    module.prepare = prepared


def fill_disk(module: ModuleType, *, step: int, ballast: str, room: int) -> None:
    """Fills the disk of a file up to some room once a checkpoint is begun, from a step on."""
    check = module.check_room

    def checked(folder: Path, wanted: int) -> None:
        check(folder, wanted)
        if int(folder.name.split("-")[1]) >= step:
            Path(ballast).write_bytes(b"0" * (shutil.disk_usage(folder.parent).free - room))

    module.check_room = checked


def _ask_to_stop(to: str) -> None:
    """Sends `SIGNAL:launcher`, `SIGNAL:accelerate`, `SIGNAL:rank`, or makes a stop file."""
    what, _, whom = to.partition(":")
    if whom not in ("launcher", "accelerate", "rank"):
        Path(to).touch()
        return
    above = [int(pid) for pid in os.environ["SAILPLAN_LAUNCHERS"].split()]
    pids = {"launcher": above[0], "accelerate": above[-1], "rank": os.getpid()}
    os.kill(pids[whom], signal.Signals[what])


def _at_call(owner: Any, name: str, number: int, act: Callable[[], object]) -> None:
    """Has something done at the `number`-th call of a function, before it does anything."""
    call, calls = getattr(owner, name), itertools.count(1)

    def called(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            act()
        return call(*arguments, **options)

    setattr(owner, name, called)


def stop_in_import(module: ModuleType, *, to: str) -> None:
    """Has the run asked to stop while a rank still imports."""
    _ask_to_stop(to)


def stop_in_encoding(module: ModuleType, *, to: str) -> None:
    """Has the run asked to stop when its rows are about to be encoded."""
    _at_call(module, "prepare", 1, lambda: _ask_to_stop(to))


def stop_in_loading(module: ModuleType, *, to: str) -> None:
    """Has the run asked to stop when its model is about to be loaded."""
    _at_call(module, "load_model", 1, lambda: _ask_to_stop(to))


def stop_in_step(module: ModuleType, *, to: str, number: int) -> None:
    """Has the run asked to stop in a micro batch, counted from where this process begins."""
    _at_call(module.Trainer, "training_step", number, lambda: _ask_to_stop(to))


def stop_in_save(module: ModuleType, *, to: str, number: int) -> None:
    """Has the run asked to stop in a save, counted from where this process begins."""
    _at_call(module.Trainer, "save_model", number, lambda: _ask_to_stop(to))


def stop_in_evaluation(module: ModuleType, *, to: str, number: int) -> None:
    """Has the run asked to stop in a held-out batch, counted from where this process begins."""
    _at_call(module.Trainer, "prediction_step", number, lambda: _ask_to_stop(to))


PLANTS: dict[str, tuple[str, Callable[..., None]]] = {
    "stop_in_import": ("sailplan.train.arguments", stop_in_import),
    "stop_in_encoding": ("sailplan.data.prepare", stop_in_encoding),
    "stop_in_loading": ("sailplan.model.load", stop_in_loading),
    "stop_in_step": ("sailplan.train.trainer", stop_in_step),
    "stop_in_save": ("sailplan.train.trainer", stop_in_save),
    "stop_in_evaluation": ("sailplan.train.trainer", stop_in_evaluation),
    "out_of_memory": ("sailplan.train.trainer", out_of_memory),
    "eat_memory": ("sailplan.train.trainer", eat_memory),
    "eat_card": ("sailplan.train.trainer", eat_card),
    "out_of_memory_in_save": ("sailplan.train.trainer", out_of_memory_in_save),
    "fill_disk": ("sailplan.train.saving.saver", fill_disk),
    "bad_loss": ("trl.trainer.sft_trainer", bad_loss),
    "bad_gradient": ("trl.trainer.sft_trainer", bad_gradient),
    "rot_files": ("sailplan.data.prepare", rot_files),
    "sleep_in_collator": ("sailplan.data.collator", sleep_in_collator),
    "sleep_in_worker": ("sailplan.data.collator", sleep_in_worker),
    "stop_in_collator": ("sailplan.data.collator", stop_in_collator),
    "keep_interpreter_in_collator": ("sailplan.data.collator", keep_interpreter_in_collator),
    "meet_in_step": ("sailplan.train.trainer", meet_in_step),
    "kill_in_step": ("sailplan.train.trainer", kill_in_step),
    "leave_logits": ("sailplan.train.trainer", leave_logits),
    "fail_in_step": ("sailplan.data.collator", fail_in_step),
    "meet_in_save": ("sailplan.train.trainer", meet_in_save),
    "save_slowly": ("sailplan.train.trainer", save_slowly),
    "leave_out_all_reduce": ("sailplan.train.trainer", leave_out_all_reduce),
}
"""By name: the module, and what patches it."""
