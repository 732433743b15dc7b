"""Where presets, job templates and run files lie, beside a clone's sources or inside the wheel.

Also how a file is written so that no reader ever sees half of it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sailplan.errors import OutputError, RunFileError

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


def chat_templates() -> dict[str, Path]:
    """Returns the chat templates that sailplan brings, by name."""
    return {path.stem: path for path in sorted((_PACKAGE / "chat_templates").glob("*.jinja"))}


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: to a neighbour, synced, then renamed over it.

    Raises:
        OSError: It cannot be written; nothing is left behind, and an older file stays as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide it from colleagues
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_output(path: Path, content: bytes) -> None:
    """Writes a file that a user asked for, as `write_atomically`, and the folders above it.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
