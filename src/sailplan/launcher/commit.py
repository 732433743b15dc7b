"""Which commit of a git repository a run is launched from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

TIME_LIMIT_S: Final = 0.25
"""A run starts without it where git takes longer, as on a slow disk; it mostly takes 0.01 s."""

_COMMAND = (
    *("git", "-c", "core.fsmonitor=false", "status", "--porcelain=v2", "--branch"),
    *("--no-ahead-behind", "--untracked-files=no", "--ignore-submodules=dirty"),
)
"""One call for both; it looks at files that git tracks alone, and runs no program of the user's."""

_HEAD = "# branch.oid "


def commit_of(folder: Path, *, time_limit_s: float = TIME_LIMIT_S) -> dict[str, str | bool] | None:
    """Returns the commit that a folder stands at, as `hash`, and whether tracked files differ.

    Args:
        folder: A folder.
        time_limit_s: How long git may take.

    Returns:
        `{"hash": …, "dirty": …}`; None where there is no git, no repository or no commit, and where
        git takes too long.
    """
    # Without its lock, so that a git that the user runs at the same time does not fail.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        said = subprocess.run(
            _COMMAND,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=time_limit_s,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = said.stdout.decode(errors="replace").splitlines()
    heads = [line.removeprefix(_HEAD) for line in lines if line.startswith(_HEAD)]
    if not heads or not heads[0].isalnum():  # `(initial)` where nothing is committed yet
        return None
    return {"hash": heads[0], "dirty": any(not line.startswith("#") for line in lines)}
