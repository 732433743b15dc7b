"""What a check finds, and what it looks at."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from sailplan.errors import SailplanError
from sailplan.hardware.detect import Detected, Machine, detect
from sailplan.hardware.driver import Driver, read_driver
from sailplan.launcher.strategy import Division, divide
from sailplan.run.config import Run

Mark = Literal["ok", "failed", "not checked"]

SIGNS: Mapping[Mark, str] = {"ok": "✓", "failed": "✗", "not checked": "–"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The outcome of one check."""

    mark: Mark
    """Whether it is as it should be; `not checked` where that cannot be told here."""
    text: str
    """What was found, in one clause."""
    fix: str = ""
    """What to do about it; of a check that did not fail, what would be better."""
    detail: str = ""
    """What a program printed that was tried and failed: several lines."""


def ok(text: str, *, fix: str = "") -> Finding:
    """Returns the finding that all is well."""
    return Finding(mark="ok", text=text, fix=fix)


def failed(text: str, *, fix: str, detail: str = "") -> Finding:
    """Returns the finding of a fault."""
    return Finding(mark="failed", text=text, fix=fix, detail=detail)


def unchecked(text: str) -> Finding:
    """Returns the finding that this cannot be told here, and why."""
    return Finding(mark="not checked", text=text)


def of_error(error: SailplanError) -> Finding:
    """Returns a user's error as the finding of a fault."""
    text = error.got + (f"; allowed: {error.allowed}" if error.allowed else "")
    return failed(text, fix=error.todo)


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is examined: a machine, and a run where one is named."""

    machine: Machine
    """What the launcher sees."""
    driver: Detected[Driver | None]
    """What NVIDIA's driver tells beside that."""
    environment: Mapping[str, str] = field(repr=False)
    """The variables that the ranks would have; may hold secrets."""
    run: Run | None = None
    """The run; None where the machine alone is examined."""
    division: Division | None = None
    """How the run would be divided, were everything there; None without a run."""
    trouble: SailplanError | None = None
    """Why the run cannot be divided on this machine."""

    @classmethod
    def of(cls, run: Run | None, *, machine: Machine | None = None) -> Subject:
        """Looks at this machine, for a run or for any."""
        environment = {**os.environ, **(run.environment() if run else {})}
        machine = machine or detect(environment)
        division = trouble = None
        if run is not None:
            # A missing compiler is a finding; it must not hide which strategy would need it.
            whole = replace(machine, cpu_zero=Detected(value=True, reason=""))
            try:
                division = divide(_part_of(run), whole)
            except SailplanError as error:
                trouble = error
        return cls(
            machine=machine,
            driver=read_driver(environment),
            environment=environment,
            run=run,
            division=division,
            trouble=trouble,
        )

    @property
    def on_cpu(self) -> bool:
        """Whether the ranks would train on the CPU."""
        return self.division.on_cpu if self.division else not self.machine.gpus.value

    @property
    def strategy(self) -> str:
        """What would be sharded; `ddp` where no run says it."""
        if self.division is not None:
            return self.division.preset.strategy
        asked = self.run.launch.strategy if self.run else "auto"
        return "ddp" if asked == "auto" else asked

    @property
    def processes(self) -> int:
        """The number of ranks; one per GPU, or two, where no run says it."""
        return self.division.processes if self.division else len(self.machine.gpus.value) or 2

    def wants(self, *names: str) -> bool:
        """Says whether the run writes one of these fields; without a run, any may be wanted."""
        return self.run is None or any(self.run.get(name) for name in names)


def _part_of(run: Run) -> Run:
    """Returns what one of a run's machines has to do."""
    accelerate = {name: value for name, value in run.accelerate.items() if name != "num_machines"}
    launch = run.launch.model_copy(update={"nodes": 1})
    return replace(run, launch=launch, accelerate=accelerate)


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of the doctor's."""

    name: str
    """What is checked, in one or two words."""
    examine: Callable[[Subject], Finding]
    """Looks, and tells."""
    waits: bool = False
    """Whether it starts processes or asks the network, and so takes seconds."""
    before_launch: bool = False
    """Whether what it finds stops a launch; only what takes milliseconds may."""
