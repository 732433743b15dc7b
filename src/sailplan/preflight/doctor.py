"""The doctor: every check in its order, from what takes no time to what takes the longest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sailplan.errors import SailplanError
from sailplan.preflight import cache, compiler, disk, flash, gpus, host, installed, quantiser
from sailplan.preflight.finding import Check, Finding, Subject, failed, of_error, unchecked
from sailplan.preflight.smoke import smoke

CHECKS = (
    Check(name="Python", examine=installed.python),
    Check(name="libraries", examine=installed.libraries),
    Check(name="torch", examine=installed.torch, before_launch=True),
    Check(name="driver", examine=installed.driver, before_launch=True),
    Check(name="NCCL", examine=installed.nccl),
    Check(name="GPUs", examine=gpus.gpus, before_launch=True),
    Check(name="GPU memory", examine=gpus.memory, before_launch=True),
    Check(name="links", examine=gpus.links),
    Check(name="division", examine=gpus.division),
    Check(name="bitsandbytes", examine=quantiser.version, before_launch=True),
    Check(name="flash-attn", examine=flash.version, before_launch=True),
    Check(name="compiler", examine=compiler.tools),
    Check(name="shared memory", examine=host.shared_memory, before_launch=True),
    Check(name="open files", examine=host.open_files, before_launch=True),
    Check(name="locked memory", examine=host.locked_memory),
    Check(name="port", examine=host.port),
    Check(name="disk", examine=disk.room, before_launch=True),
    Check(name="hub cache", examine=cache.writable, before_launch=True),
    Check(name="model and data", examine=cache.at_hand),
    Check(name="hub token", examine=cache.token, waits=True),
    Check(name="torch computes", examine=gpus.computing, waits=True),
    Check(name="bitsandbytes works", examine=quantiser.native, waits=True),
    Check(name="flash-attn works", examine=flash.importing, waits=True),
    Check(name="DeepSpeed compiles", examine=compiler.compiling, waits=True),
    Check(name="smoke test", examine=smoke, waits=True),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One check that was made."""

    name: str
    """What was checked."""
    finding: Finding
    """How it is."""
    seconds: float
    """How long it took to find out."""

    def as_dict(self) -> dict[str, Any]:
        """Returns it as `--json` prints it."""
        found = asdict(self.finding)
        return {"check": self.name, **found, "seconds": round(self.seconds, 3)}


class Lines:
    """Gives findings their names, in order, and the seconds that each took.

    Args:
        names: Of all lines.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = iter(names)
        self._since = time.monotonic()

    def of(self, find: Callable[[], Finding]) -> Line:
        """Returns the next line; a user's error is the finding of a fault."""
        try:
            return self._line(find())
        except SailplanError as error:
            return self._line(of_error(error))

    def all(self, findings: Iterator[Finding]) -> Iterator[Line]:
        """Yields a line for each finding."""
        yield from map(self._line, findings)

    def rest(self, why: str) -> Iterator[Line]:
        """Yields the lines that are left, which cannot be told."""
        yield from (
            Line(name=name, finding=unchecked(why), seconds=0.0) for name in list(self._names)
        )

    def _line(self, finding: Finding) -> Line:
        now = time.monotonic()
        line = Line(name=next(self._names), finding=finding, seconds=now - self._since)
        self._since = now
        return line


def examine(
    subject: Subject, checks: Iterable[Check] = CHECKS, *, quick: bool = False
) -> Iterator[Line]:
    """Makes the checks, and yields each as soon as it is made.

    Args:
        subject: What is examined.
        checks: Which; all of the doctor's where not given.
        quick: Leave out those that start processes or ask the network.
    """
    for check in checks:
        start = time.monotonic()
        if quick and check.waits:
            finding = unchecked("left out by --quick")
        else:
            finding = _examined(check, subject)
        yield Line(name=check.name, finding=finding, seconds=time.monotonic() - start)


def _examined(check: Check, subject: Subject) -> Finding:
    try:
        return check.examine(subject)
    except OSError as error:  # no folder for temporary files, no process more, a broken mount
        place = f" ({error.filename})" if error.filename else ""
        text = f"this could not be looked at: {error.strerror or error}{place}"
        return failed(text, fix="put that right first, and call the doctor again")
