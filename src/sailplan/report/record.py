"""What is told of a run, in one piece: gathered once, then drawn as a page, a picture or JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sailplan.data.facts import Split
from sailplan.evaluate.comparison import Comparison

Point = tuple[int, float]
"""An optimizer step, and a value at it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a chart."""

    name: str
    """Such as `training`."""
    points: tuple[Point, ...]
    """In the order of their steps, finite all of them."""
    dotted: bool = False
    """Whether each point is to be seen, of values that come seldom, such as evaluations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One chart over the steps of a run."""

    name: str
    """Stable, such as `loss`."""
    title: str
    """For people, such as `loss of a token`."""
    lines: tuple[Line, ...]
    share: bool = False
    """Whether values are parts of a whole, to be written in percent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """Where a launch went on with training."""

    step: int
    kind: Literal["resume", "rollback"]
    """`rollback` where steps had been done behind it, which were done again."""
    words: str
    """For people, such as `launch 2 went on from step 40; steps 41 to 57 were done again`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One thing that was so, such as the model or a version."""

    name: str
    value: str
    group: str
    """What it belongs to, such as `model`, `data`, `method`, `hardware` or `versions`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Memory of one GPU, planned against measured; the run's rank that needed most."""

    device: str
    parts: tuple[tuple[str, int], ...]
    """What was planned at the peak, by kind, in bytes, the largest first."""
    planned_bytes: int
    """Its sum, as torch allocates it."""
    card_bytes: int | None
    """What the planned card has."""
    active_bytes: int | None
    """The most that tensors took; None where nothing was measured, as on a CPU."""
    reserved_bytes: int | None
    """The most that the allocator held."""
    words: str
    """Planned and measured, in a line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What the model answered to a watched row at one evaluation."""

    step: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """A held-out row that the model was asked at every evaluation."""

    place: str
    prompt: str
    reference: str
    images: tuple[str, ...]
    """Files of its images, in the run's directory."""
    said: tuple[Said, ...]
    """In the order of the steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What is told of a run; what is not known is empty or None, never made up."""

    name: str
    """The name of its directory."""
    path: str
    """The directory, absolute."""
    made_at: float
    """When this was gathered, in seconds since 1970."""
    version: str
    """Of sailplan, that gathered it."""
    state: str
    """How the run stands, as `sailplan runs` says it."""
    why: str
    """Why, in a line; may be empty."""
    facts: tuple[Fact, ...]
    command: str
    """The exact command of the last launch."""
    curves: tuple[Curve, ...]
    marks: tuple[Mark, ...]
    launches: tuple[str, ...]
    """Each launch and how it ended, in a line."""
    memory: Memory | None
    reasons: tuple[str, ...]
    """Why the run is divided as it is, the plan's own lines."""
    splits: tuple[Split, ...]
    data_notes: tuple[str, ...]
    """What is trained of the rows, and what was left out."""
    comparison: Comparison | None
    watched: tuple[Watched, ...]
