"""Launches a run file with `tests.launcher.ranks` in place of the entry script, as the CLI does."""

from __future__ import annotations

import os
import sys

from sailplan.errors import SailplanError
from sailplan.hardware.detect import detect
from sailplan.launcher import local
from sailplan.launcher.command import command
from sailplan.run.config import Run


def main() -> None:
    """Launches `sys.argv[1]` with the flags that follow."""
    run = Run.from_file(sys.argv[1], sys.argv[2:])
    environment = {**os.environ, **run.environment()}
    machine = detect(environment)
    try:
        port = local.meeting_port(run)
        module = "tests.launcher.ranks"
        launch = command(run, machine, port=port, environment=environment, module=module)
        code = local.train(run, launch, machine, environment)
    except SailplanError as error:
        sys.exit(f"error: {error}")
    sys.exit(code)


if __name__ == "__main__":
    main()
