"""Goes on with a checkpoint on more or fewer ranks than those that saved it.

Under DDP every rank has the same weights and the same optimizer, so nothing has to be done. Under
ZeRO each rank saved its part, and the first rank writes the parts anew, as DeepSpeed's universal
form, beside the checkpoint; it is there only while it is loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sailplan.checkpoint.zero_states import division, is_zero
from sailplan.data.ranks import wait_for_ranks
from sailplan.errors import CheckpointError, OutputError
from sailplan.progress import track_bytes
from sailplan.run.paths import RunPaths
from sailplan.sizes import shown_bytes
from sailplan.train import universal
from sailplan.train.phase import PHASE

if TYPE_CHECKING:
    from transformers import Trainer

_BESIDE = ("scheduler.pt", "scaler.pt")
"""What transformers loads of a checkpoint together with what DeepSpeed does."""
_DIVIDING = "dividing the checkpoint over the ranks"


@contextmanager
def loadable(trainer: Trainer, checkpoint: str | Path | None) -> Iterator[Path | None]:
    """Gives the folder of which these ranks can load a checkpoint, as long as the block runs.

    That is the checkpoint itself where it fits; what must be written anew is gone afterwards.

    Args:
        trainer: Its DeepSpeed engine, where there is one, loads within the block.
        checkpoint: None where there is nothing to load.

    Raises:
        CheckpointError: The checkpoint cannot be divided over these ranks, or holds no state of an
            optimizer that this strategy could load.
        OutputError: There is no room for it.
    """
    paths = RunPaths(Path(trainer.args.output_dir))
    if trainer.args.process_index == 0:
        shutil.rmtree(paths.divided, ignore_errors=True)  # of a run that was killed while it loaded
    if checkpoint is None:
        yield None
        return
    checkpoint = Path(checkpoint)
    zero = zero_folder(checkpoint)
    _check_strategy(trainer, checkpoint, zero)
    if zero is None or division(zero) == _division(trainer):
        yield checkpoint
        return
    if trainer.args.process_index == 0:
        with PHASE.within(_DIVIDING):
            _write(checkpoint, zero, paths.divided, trainer)
    wait_for_ranks()
    with _universal(trainer):
        yield paths.divided
    _put_right(trainer, universal.hyperparameters(paths.divided / zero.name))
    wait_for_ranks()
    if trainer.args.process_index == 0:
        shutil.rmtree(paths.divided, ignore_errors=True)


def differences(trainer: Trainer, checkpoint: Path | None) -> list[str]:
    """Says what is otherwise from here on than if the ranks that saved a checkpoint went on."""
    ranks = trainer.args.world_size
    saved_by = None if checkpoint is None else _saved_by(checkpoint)
    if checkpoint is not None and saved_by is None:
        return [
            f"{checkpoint.name} has weights alone (save_only_model): optimizer, schedule and "
            "random numbers begin anew, and the curve is another"
        ]
    if checkpoint is None or saved_by == ranks:
        return []
    saver = "1 rank" if saved_by == 1 else f"{saved_by} ranks"
    words = f"{checkpoint.name} was saved by {saver} and goes on with {ranks}"
    chance = _chance(trainer)
    if chance is None:
        return [f"{words}: the curve stays the same, to rounding"]
    return [f"{words}: {chance} draws other numbers from here on, so the curve differs a little"]


def zero_folder(checkpoint: Path) -> Path | None:
    """Returns the folder of DeepSpeed's files in a checkpoint, None where there is none."""
    latest = checkpoint / "latest"
    named = [checkpoint / latest.read_text(encoding="utf-8").strip()] if latest.is_file() else []
    found = [folder for folder in (*named, *checkpoint.glob("global_step*")) if is_zero(folder)]
    return found[0] if found else None


def seed_rank(trainer: Trainer, checkpoint: Path) -> None:
    """Seeds a rank that has no random state in the checkpoint, each rank otherwise.

    The same checkpoint on as many ranks gives the same numbers again.
    """
    from transformers import set_seed

    args = trainer.args
    alone = args.world_size == 1
    name = "rng_state.pth" if alone else f"rng_state_{args.process_index}.pth"
    if not (checkpoint / name).is_file():
        parts = (args.seed, trainer.state.global_step, args.process_index)
        set_seed(hash(parts) % 2**32)


def _saved_by(checkpoint: Path) -> int | None:
    """Returns the ranks that saved a checkpoint, by the random states that each of them left."""
    if (checkpoint / "rng_state.pth").is_file():
        return 1
    return len(list(checkpoint.glob("rng_state_*.pth"))) or None


def _chance(trainer: Trainer) -> str | None:
    """Names what of the model draws random numbers in training; None where nothing does."""
    if trainer.args.neftune_noise_alpha:
        return "neftune_noise_alpha"
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0:
            return "dropout"
        # Attention and whole layers are dropped by numbers that no module of torch holds.
        rates = (value for name, value in vars(module).items() if "drop" in name)
        if any(isinstance(rate, float) and rate > 0 for rate in rates):
            return "dropout"
    return None


def _division(trainer: Trainer) -> tuple[int, bool]:
    """Returns the ranks there are, and whether they train under ZeRO-3."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    return trainer.args.world_size, plugin.zero_stage == 3


def _check_strategy(trainer: Trainer, checkpoint: Path, zero: Path | None) -> None:
    """Refuses a checkpoint whose optimizer would be left behind."""
    by_deepspeed = any(checkpoint.glob("global_step*"))
    if trainer.is_deepspeed_enabled and not by_deepspeed and _saved_by(checkpoint) is None:
        raise CheckpointError(
            f"{checkpoint} has weights alone (save_only_model), and DeepSpeed goes on with its own "
            "states",
            todo="begin another run from these weights: --model_name_or_path names the checkpoint",
        )
    if trainer.is_deepspeed_enabled and not by_deepspeed:
        got = f"{checkpoint} was not saved under DeepSpeed, which cannot load its optimizer"
        allowed = "the strategy of the run so far: single or ddp"
    elif zero is not None and not trainer.is_deepspeed_enabled:
        got = f"{checkpoint} was saved under ZeRO, and its optimizer loads only there"
        allowed = "zero1, zero2, zero3, zero3_offload, on any number of ranks, one too"
    else:
        return
    raise CheckpointError(got, allowed=allowed, todo="change launch.strategy, or the preset")


def _write(checkpoint: Path, zero: Path, target: Path, trainer: Trainer) -> None:
    """Writes the checkpoint anew; the folder has its name only once it is whole."""
    plan = universal.read(zero)
    ranks, is_zero3 = _division(trainer)
    states = plan.tensors.keys() - {"fp32"}
    if is_zero3 and states != universal.ADAMW:
        raise CheckpointError(
            f"{zero}: DeepSpeed's ZeRO-3 divides only AdamW's states over other ranks, and the "
            f"optimizer has {', '.join(sorted(states)) or 'none'}",
            todo=f"go on with {plan.states.world_size} ranks under the strategy it was saved with",
        )
    if not is_zero3 and plan.states.stage != 3:
        universal.check_shares(plan, ranks)
    _check_room(plan, target)
    label = f"dividing {checkpoint.name} of {plan.states.world_size} ranks over {ranks}"
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with track_bytes(label, total=plan.num_bytes) as advance:

            def done(num_bytes: int) -> None:
                advance(num_bytes)
                PHASE.move(_DIVIDING)

            universal.write(plan, partial / zero.name, done)
        (partial / "latest_universal").write_text(zero.name, encoding="utf-8")
        for name in _BESIDE:
            if (checkpoint / name).is_file():
                (partial / name).symlink_to((checkpoint / name).absolute())
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(f"cannot write {target}: {error.strerror}", todo="make room") from error


def _check_room(plan: universal.Universal, target: Path) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < plan.num_bytes:
        needed, left = shown_bytes(plan.num_bytes), shown_bytes(free)
        raise OutputError(
            f"dividing the checkpoint over other ranks takes {needed} in {target.parent} while it "
            f"loads, and {left} are free",
            todo=f"make room, or go on with {plan.states.world_size} ranks",
        )


@contextmanager
def _universal(trainer: Trainer) -> Iterator[None]:
    """Has DeepSpeed's engine, there already or made within, load the universal form."""
    config = trainer.accelerator.state.deepspeed_plugin.hf_ds_config.config
    before = config.get("checkpoint")
    config["checkpoint"] = {**(before or {}), "load_universal": True}
    engine = getattr(trainer, "deepspeed", None)
    if engine is not None:
        engine._config.load_universal_checkpoint = True
    try:
        yield
    finally:
        if before is None:
            del config["checkpoint"]
        else:
            config["checkpoint"] = before
    trainer.deepspeed._config.load_universal_checkpoint = False


def _put_right(trainer: Trainer, groups: Sequence[dict[str, Any]]) -> None:
    """Puts right what DeepSpeed 0.19 loads wrong under ZeRO-3.

    Every parameter group gets the first one's settings, and all get one counter of steps, which
    each of them then moves on.
    """
    optimizer = trainer.deepspeed.optimizer.optimizer
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        group.update(settings)
    on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
    for parameter, state in optimizer.state.items():
        if isinstance(state.get("step"), torch.Tensor):
            device = parameter.device if on_device else "cpu"
            state["step"] = state["step"].clone().to(device)
