"""This interpreter and its programs, for users who may not read where it is installed."""

from __future__ import annotations

import os
import shutil
import site
import sys
from pathlib import Path


def is_for_all(path: Path) -> bool:
    """Whether every user gets as far as a path."""
    resolved = path.resolve()
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (resolved, *resolved.parents))


def programs_for_all(directory: Path) -> Path:
    """The folder of this environment's programs, such as python, accelerate and sailplan.

    Where the interpreter is below a closed folder (root's home, often), it is a second
    environment in the directory: the same interpreter and the same packages.

    Args:
        directory: Where a second environment may be made; a cluster's directory.
    """
    programs = Path(sys.executable).parent
    if is_for_all(Path(sys.executable)):
        return programs
    base = directory / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not base.exists():
        shutil.copytree(
            Path(sys.base_prefix) / "lib",
            base / "lib",
            symlinks=True,
            ignore=shutil.ignore_patterns("site-packages", "test", "*.a"),
            copy_function=link_or_copy,
        )
        (base / "bin").mkdir()
        interpreter = base / "bin" / version
        interpreter.write_bytes(relocated(Path(sys.executable).resolve().read_bytes()))
        interpreter.chmod(0o755)
        write_environment(directory / "venv", interpreter, programs)
    return directory / "venv" / "bin"


def write_environment(place: Path, interpreter: Path, programs: Path) -> None:
    """Writes a virtual environment that sees this one's packages and has its programs."""
    packages = place / "lib" / interpreter.name / "site-packages"
    packages.mkdir(parents=True)
    # An environment on top of another must read its .pth files as well: editable packages.
    seen = "".join(f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages())
    (packages / "seen.pth").write_text(seen)
    (place / "pyvenv.cfg").write_text(f"home = {interpreter.parent}\n")
    (place / "bin").mkdir()
    for name in ("python", "python3", interpreter.name):
        (place / "bin" / name).symlink_to(interpreter)
    for program in programs.iterdir():
        copy = place / "bin" / program.name
        if copy.exists() or not program.is_file():
            continue
        first, _, rest = program.read_bytes().partition(b"\n")
        if first.startswith(b"#!") and b"python" in first:
            copy.write_bytes(f"#!{place}/bin/python\n".encode() + rest)
            copy.chmod(0o755)
        else:
            copy.symlink_to(program)


def relocated(interpreter: bytes) -> bytes:
    """An interpreter that looks for its own library beside itself, not where it was installed."""
    installed = f"{sys.base_prefix}/lib".encode() + b"\0"
    return interpreter.replace(installed, b"$ORIGIN/../lib".ljust(len(installed), b"\0"))


def link_or_copy(source: str, target: str) -> None:
    """Gives a file a second name, or copies it where the name is on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
