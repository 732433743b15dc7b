"""What is proven before anything is launched: the cheap parts of plan, inspect and doctor."""

from __future__ import annotations

from collections.abc import Callable

from sailplan.errors import HardwareError
from sailplan.hardware.detect import Machine
from sailplan.preflight.checks import check_hub
from sailplan.preflight.doctor import CHECKS, Line, examine
from sailplan.preflight.finding import Subject
from sailplan.preflight.rows import check_first_rows
from sailplan.run.config import Run


def hub(subject: Subject) -> None:
    """Refuses what is neither here nor may come; see `checks.check_hub`."""
    if subject.run is not None:
        check_hub(subject.run)


def data(subject: Subject) -> None:
    """Refuses data whose first rows cannot be trained on; see `rows.check_first_rows`."""
    if subject.run is not None:
        check_first_rows(subject.run)


def machine(subject: Subject) -> None:
    """Refuses a machine on which the run would fail, by the cheap ones of the doctor's checks.

    Raises:
        HardwareError: One of them failed; the others are counted.
    """
    cheap = (check for check in CHECKS if check.before_launch)
    wrong = [line for line in examine(subject, cheap) if line.finding.mark == "failed"]
    if wrong:
        raise HardwareError(_told(wrong), todo=_todo(wrong, subject))


BEFORE_LAUNCH: tuple[Callable[[Subject], None], ...] = (hub, data, machine)
"""What is called, in this order, before a launch; each raises a `SailplanError` to stop it, and
takes milliseconds: no torch, no network that is not asked anyway."""

BEFORE_QUEUE = (hub, data)
"""What is called before a run is queued, on a machine that is not the one that trains."""


def before_launch(run: Run, found: Machine, *, queued: bool = False) -> None:
    """Stops a run that is going to fail, before anything is started.

    Args:
        run: The run.
        found: This machine.
        queued: The run will train elsewhere: of this machine nothing is asked.

    Raises:
        SailplanError: It is going to fail; which class says why.
    """
    subject = Subject.of(run, machine=found)
    for prove in BEFORE_QUEUE if queued else BEFORE_LAUNCH:
        prove(subject)


def _told(wrong: list[Line]) -> str:
    first = f"{wrong[0].name}: {wrong[0].finding.text}"
    more = ", ".join(line.name for line in wrong[1:])
    return f"{first}; also wrong: {more}" if more else first


def _todo(wrong: list[Line], subject: Subject) -> str:
    run_file = (subject.run.source if subject.run else None) or "RUN"
    way = f"`sailplan doctor {run_file}` tells more, --no-preflight goes on"
    return f"{wrong[0].finding.fix}; {way}" if wrong[0].finding.fix else way
