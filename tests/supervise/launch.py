"""Does as `sailplan train` does with `tests.supervise.ranks` in place of the entry script."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from sailplan.errors import SailplanError
from sailplan.hardware.detect import detect
from sailplan.launcher import local
from sailplan.launcher.command import command
from sailplan.run.config import Run
from sailplan.supervise.attempt_log import settled_before
from sailplan.supervise.attempts import Attempts, Ready
from sailplan.supervise.next_plan import with_settings


def main() -> None:
    """Launches `sys.argv[1]` with the flags that follow."""
    asked = Run.from_file(sys.argv[1], sys.argv[2:])
    machine = detect(os.environ)

    def prepare(changed: Mapping[str, Any]) -> Ready:
        run = with_settings(asked, changed)
        port = local.meeting_port(run)
        launch = command(
            run, machine, port=port, environment=os.environ, module="tests.supervise.ranks"
        )
        return Ready(run=run, kept=asked, launch=launch, plan=None, notes=launch.notes)

    try:
        changed, why = settled_before(asked, machine)
        for note in why:
            print(note, flush=True)
        attempts = Attempts(
            prepare=prepare,
            machine=machine,
            environment=os.environ,
            run_file=sys.argv[1],
            asked=asked,
            changed=changed,
        )
        code = attempts.train(prepare(changed))
    except SailplanError as error:
        sys.exit(f"error: {error}")
    sys.exit(code)


if __name__ == "__main__":
    main()
