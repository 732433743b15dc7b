"""What a checkpoint's manifest says of the run: its step, its world, its versions, its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import xxhash

from sailplan import __version__
from sailplan.checkpoint.manifest import FileRecord, Manifest
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.run.identity import identity

if TYPE_CHECKING:
    from sailplan.train.trainer import Trainer

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "bitsandbytes")


def manifest_of(
    run: Run, trainer: Trainer, *, first: bool
) -> Callable[[Mapping[str, FileRecord], float], Manifest]:
    """Returns what makes the manifest of this step's checkpoint, once its files are known.

    Args:
        run: The run.
        trainer: Its trainer, at the end of the step.
        first: The checkpoint is there only to prove that saving works.
    """
    args, state = trainer.args, trainer.state
    samples = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    run_file = RunDirectory.of(run).run_file
    written = run_file.read_bytes() if run_file.is_file() else b""
    step, data = state.global_step, {"epoch": state.epoch, "tokens": state.num_input_tokens_seen}

    def made(files: Mapping[str, FileRecord], now: float) -> Manifest:
        return Manifest(
            step=step,
            world_size=args.world_size,
            global_batch=samples,
            strategy=strategy_of(trainer),
            run=identity(run),
            run_file=xxhash.xxh3_64_hexdigest(written),
            versions={"sailplan": __version__, **_versions()},
            data=data,
            first=first,
            saved_at=now,
            files=files,
        )

    return made


def strategy_of(trainer: Trainer) -> str:
    """Returns how a trainer divides its model over the ranks, as the run file names it."""
    if trainer.deepspeed is not None:
        return f"zero{trainer.deepspeed.zero_optimization_stage()}"
    if trainer.is_fsdp_enabled:
        return "fsdp2"
    return "ddp" if trainer.args.world_size > 1 else "single"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
