"""Where presets, job templates and run files lie: beside a clone's sources, or inside the wheel."""

from __future__ import annotations

from pathlib import Path

from sailplan.errors import RunFileError

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """Returns one of the folders that travel with sailplan.

    Args:
        name: `accelerate_configs`, `launch` or `slurm`.
    """
    installed = _PACKAGE / "_files" / name
    return installed if installed.is_dir() else _PACKAGE.parents[1] / name


def preset(name: str) -> Path:
    """Returns the accelerate preset of that name, such as `deepspeed_zero3`.

    Raises:
        RunFileError: There is no such preset.
    """
    path = folder("accelerate_configs") / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise RunFileError(f"no accelerate preset {name!r}", allowed=known)
    return path
