"""Which run file a command is about, and that its fields may follow as flags."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sailplan import files
from sailplan.errors import RunFileError

if TYPE_CHECKING:
    from sailplan.run.config import Run

CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Every field of a run file is a flag: they pass through to `Run`."""


def find_directory(
    name: str, *, known: Callable[[Path], bool], overrides: Sequence[str] = ()
) -> tuple[Path, Run | None]:
    """Returns the directory of the run that is meant, and the run where a run file was named.

    Args:
        name: A directory, a run file, or a directory's name below the one where runs usually lie.
        known: Says of a directory whether it is what is looked for; one of a run file may not be.
        overrides: Fields of the run file as flags.

    Raises:
        RunFileError: There is none, or the run file is wrong.
    """
    from sailplan.cli.runs import usual_folder
    from sailplan.run.config import Run
    from sailplan.run.directory import RunDirectory

    path = Path(name).expanduser()
    for folder in (path, usual_folder() / path):
        if name and known(folder):
            return folder, None
    run = Run.from_file(find_run_file(name), overrides)
    return RunDirectory.of(run).path, run


def find_run_file(name: str) -> Path:
    """Returns the run file that is meant: a file, a directory's run.yaml, or one of launch/.

    Raises:
        RunFileError: There is none.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if name and path.is_dir():
        if (path / "run.yaml").is_file():
            return path / "run.yaml"
        raise RunFileError(f"{path} holds no run.yaml", todo="name a run file")
    shipped = files.folder("launch") / f"{name.removesuffix('.yaml')}.yaml"
    if shipped.parent == files.folder("launch") and shipped.is_file():
        return shipped
    names = sorted(file.stem for file in files.folder("launch").glob("*.yaml"))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    raise RunFileError(
        f"there is no run file {name!r}",
        allowed=f"a file, a run directory, or one of {', '.join(names)}",
        todo=f"did you mean {near[0]}?" if near else "the run file comes before the flags",
    )
