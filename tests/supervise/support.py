"""What the tests of launches share: a run file, and starting it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.launcher.support import run
from tests.support.launch import End


def launch(folder: Path, what: str, *flags: str, env: dict[str, str] | None = None) -> End:
    """Launches ranks that do what the name says, and waits."""
    run(folder)
    argv = [sys.executable, "-m", "tests.supervise.launch", str(folder / "run file.yaml")]
    argv += ["--run_name", what, "--launch.cpu", "true", *flags]
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=200,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
    )
    return End(done.returncode, done.stdout, done.stderr)
