"""Which accelerate preset a run asks for, and its text: sharding, and nothing that others own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from sailplan import files
from sailplan.errors import RunFileError
from sailplan.run.config import Run
from sailplan.run.fields import package_folder

PRESETS: Mapping[str, str] = MappingProxyType(
    {
        "single": "single_gpu",
        "ddp": "ddp",
        "zero1": "deepspeed_zero1",
        "zero2": "deepspeed_zero2",
        "zero3": "deepspeed_zero3",
        "zero3_offload": "deepspeed_zero3_offload",
        "fsdp2": "fsdp2",
    }
)
"""Strategy to the name of our preset."""

_SAME_AS_OURS = {name: strategy for strategy, name in PRESETS.items()} | {
    # TRL's names of the same presets; its files also set precision, which is the run's
    "multi_gpu": "ddp",
    "zero1": "zero1",
    "zero2": "zero2",
    "zero3": "zero3",
}

_OWNED_BY_THE_RUN = ("mixed_precision", "fp16", "downcast_bf16")
_OWNED_BY_THE_COMMAND_LINE = ("num_processes", "num_machines", "machine_rank", "main_process_port")

_FOR_USE_BY_HAND = ("num_processes:", "num_machines:", "# Other machines", "# Without a GPU")
"""How the lines of our presets begin that the command line replaces."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """An accelerate configuration, as it is written beside the run."""

    strategy: str
    """What it shards: `single`, `ddp`, `zero1` … `fsdp2`."""
    text: str
    """The YAML."""
    notes: tuple[str, ...] = ()
    """What was left out of it."""


def asked_preset(run: Run) -> Preset | None:
    """Returns the preset that accelerate's own keys in the run file ask for, if they do.

    Those are `accelerate_config` (one of TRL's preset names or a file) and the flags that choose a
    paradigm (`zero_stage`, `use_deepspeed`, `use_fsdp`, `multi_gpu`).

    Raises:
        RunFileError: The file is no accelerate configuration.
    """
    name = run.accelerate.get("accelerate_config")
    if name is not None:
        if name in _SAME_AS_OURS and not Path(name).is_file():
            return named_preset(_SAME_AS_OURS[name])
        return file_preset(_file(name))
    if run.accelerate.get("zero_stage") is not None or run.accelerate.get("use_deepspeed"):
        stage = run.accelerate.get("zero_stage") or 2  # accelerate's own default
        return named_preset(f"zero{stage}")
    if run.accelerate.get("use_fsdp"):
        return named_preset("fsdp2")
    return named_preset("ddp") if run.accelerate.get("multi_gpu") else None


def named_preset(strategy: str) -> Preset:
    """Returns our own preset of a strategy."""
    if strategy not in PRESETS:
        raise RunFileError(f"there is no strategy {strategy!r}", allowed=", ".join(PRESETS))
    lines = files.preset(PRESETS[strategy]).read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith(_FOR_USE_BY_HAND)]
    return Preset(strategy=strategy, text="\n".join(kept) + "\n")


def file_preset(path: Path) -> Preset:
    """Returns the user's own configuration, without what the run and the command line own.

    Raises:
        RunFileError: The file is no accelerate configuration.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunFileError(f"accelerate_config {path} cannot be read: {error}") from None
    if not isinstance(content, dict) or "distributed_type" not in content:
        raise RunFileError(
            f"accelerate_config {path} has no distributed_type",
            todo="write the file with `accelerate config`, or name one of our presets",
        )
    notes = []
    for key in _OWNED_BY_THE_RUN:
        if content.pop(key, "no") not in ("no", False, None) and key == "mixed_precision":
            notes.append(f"mixed_precision of {path} is not used: bf16 and fp16 of the run decide")
    for key in _OWNED_BY_THE_COMMAND_LINE:
        content.pop(key, None)
    deepspeed = content.get("deepspeed_config") or {}
    for key, owner in (
        ("gradient_accumulation_steps", "gradient_accumulation_steps"),
        ("gradient_clipping", "max_grad_norm"),
    ):
        if deepspeed.pop(key, "auto") != "auto":
            notes.append(f"{key} of {path} is not used: {owner} of the run decides")
    text = f"# From {path}, without what the run and the command line own.\n"
    text += yaml.safe_dump(content, sort_keys=False)
    return Preset(strategy=_strategy(content), text=text, notes=tuple(notes))


def _strategy(content: Mapping[str, Any]) -> str:
    """Returns what a configuration shards, in our words."""
    kind = str(content["distributed_type"])
    if kind == "DEEPSPEED":
        deepspeed = content.get("deepspeed_config") or {}
        offload = deepspeed.get("offload_param_device") == "cpu"
        return f"zero{deepspeed.get('zero_stage', 2)}{'_offload' if offload else ''}"
    return {"FSDP": "fsdp2", "NO": "single"}.get(kind, "ddp")


def _file(name: str) -> Path:
    """Returns the file of a preset that only TRL has, or the user's own."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    theirs = package_folder("trl") / "accelerate_configs" / f"{name}.yaml"
    if theirs.is_file():
        return theirs
    raise RunFileError(f"accelerate_config {name!r} is neither a preset nor a file")
