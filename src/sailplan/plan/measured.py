"""What the first steps of a run took, beside what was planned; and plans corrected by it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sailplan.errors import OutputError, RunFileError
from sailplan.plan.make import Corrections
from sailplan.plan.record import Card, Plan, read_plan
from sailplan.records import from_json, to_json
from sailplan.run.directory import RunDirectory

if TYPE_CHECKING:
    from sailplan.run.config import Run

WORTH_TELLING = 0.05
"""The part of a step that may be waiting before it is told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a run's first steps took; of memory, the rank that needed most."""

    device: str
    """The GPU as the driver calls it, or `cpu`."""
    steps: int
    """Optimizer steps that were measured, the first of the run left out."""
    step_s: float
    """Seconds of one, the median."""
    planned_step_s: float
    active_bytes: int | None
    """The most that tensors took of one GPU; None where there is no GPU."""
    reserved_bytes: int | None
    """The most that the allocator held of it."""
    planned_bytes: int
    """The peak that was planned, as torch allocates it."""
    comparable: bool
    """Whether this is what was planned: the GPU, and the micro batch."""
    waiting_share: float = 0.0
    """The part of the time that was waiting for data, which no plan counts."""

    @property
    def memory_ratio(self) -> float | None:
        """Measured over planned peak."""
        return None if self.active_bytes is None else self.active_bytes / self.planned_bytes

    @property
    def time_ratio(self) -> float:
        """Measured over planned time of a step, without its waiting for data."""
        return self.step_s * (1 - self.waiting_share) / self.planned_step_s

    def text(self) -> str:
        """Returns the text of the run directory's file."""
        return json.dumps(to_json(self), indent=2) + "\n"

    def words(self) -> str:
        """Returns both, measured and planned, as a line."""
        rate = f"{self.step_s:.2f} s a step (planned {self.planned_step_s:.2f} s)"
        if self.waiting_share > WORTH_TELLING:
            rate += f", {self.waiting_share:.0%} of it waiting for data"
        if self.active_bytes is None or self.reserved_bytes is None:
            return f"measured: {rate}; memory is not compared on {self.device}"
        gib = 2**30
        return (
            f"measured: peak {self.active_bytes / gib:.2f} GiB active, "
            f"{self.reserved_bytes / gib:.2f} GiB reserved "
            f"(planned {self.planned_bytes / gib:.2f} GiB active), {rate}"
        )


def read_measured(directory: RunDirectory) -> tuple[Plan, Measured]:
    """Reads what a run directory holds of plan and measurement.

    Raises:
        OutputError: One of the two is not there or not readable.
    """
    path = directory.measured_file
    try:
        found = from_json(Measured, json.loads(path.read_text(encoding="utf-8")))
    except OSError:
        todo = "name the output_dir of a run that `sailplan train` planned and that has trained"
        raise OutputError(f"{directory.path} holds no {path.name}", todo=todo) from None
    except (ValueError, TypeError, KeyError):
        raise OutputError(f"{path} cannot be read", todo="train again, or leave it out") from None
    return read_plan(directory.plan_file), found


def corrections_of(folder: Path, run: Run, card: Card) -> Corrections:
    """Returns how a measured run says that such plans are to be corrected.

    Args:
        folder: The run directory of the measured run.
        run: The run that is planned.
        card: The GPUs that it is planned for.

    Raises:
        OutputError: The folder holds no measurement.
        RunFileError: It is of another model or another GPU, of which it says nothing.
    """
    plan, found = read_measured(RunDirectory(folder.expanduser().absolute()))
    todo = "leave --measured out, or name a run like this one"
    if plan.model != run.get("model_name_or_path"):
        raise RunFileError(f"{folder} measured {plan.model}", todo=todo)
    if plan.card.gpu != card.gpu or not found.comparable:
        raise RunFileError(f"{folder} measured {found.device}, not {card.gpu}", todo=todo)
    # Its plan may have been corrected before, and the ratios are to that.
    return Corrections(
        memory=(found.memory_ratio or 1.0) * plan.memory_factor,
        time=found.time_ratio * plan.time_factor,
        source=str(folder),
    )
