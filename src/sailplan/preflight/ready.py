"""A run made ready to launch: continued, planned, its command decided; again with other settings.

`sailplan train` does it before each launch, a job of Slurm before one that needs less memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sailplan.hardware.detect import Machine
from sailplan.launcher.command import command
from sailplan.launcher.continued import continued
from sailplan.preflight.planned import plan_ahead
from sailplan.run.config import Run
from sailplan.run.method import with_method
from sailplan.supervise.attempts import Prepare, Ready
from sailplan.supervise.next_plan import with_settings


def preparing(
    asked: Run,
    machine: Machine,
    environment: Mapping[str, str],
    *,
    port: Callable[[], int | None],
    refuse: bool = True,
    here: bool = True,
) -> Prepare:
    """Returns what makes a run ready, given settings that are changed.

    Args:
        asked: The run as it is asked for.
        machine: Each of the machines that it trains on.
        environment: Variables of the ranks beside the launch's own.
        port: Finds a port where the ranks meet, or leaves it open.
        refuse: Stop a run that does not fit.
        here: Whether the machine is this one.
    """

    def prepare(changed: Mapping[str, Any]) -> Ready:
        meet_at = port()
        going_on, kept = continued(with_settings(asked, changed), machine)
        ahead = plan_ahead(going_on, machine, refuse=refuse, here=here)
        launch = command(ahead.run, machine, port=meet_at, environment=environment)
        method = ahead.kept.get("method")
        return Ready(
            run=ahead.run,
            kept=asked if method == asked.get("method") else with_method(asked, method),
            launch=launch,
            plan=ahead.plan,
            notes=(*kept, *ahead.notes, *launch.notes),
        )

    return prepare
