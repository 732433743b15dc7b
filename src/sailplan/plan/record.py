"""A plan as it is shown, written beside the run, and read again."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sailplan import __version__
from sailplan.errors import OutputError
from sailplan.plan.choice.candidates import Candidate, nodes_of
from sailplan.plan.choice.choose import Change
from sailplan.plan.cost.host import Disk, Host
from sailplan.plan.cost.steps import Steps
from sailplan.plan.facts.data import DataFacts
from sailplan.records import from_json, to_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """The GPUs that a plan is for."""

    gpu: str
    """As the catalogue names it."""
    card_bytes: int
    """What one has."""
    gpus_per_node: int
    nodes: int
    reason: str
    """How we know: asked for, or found on this machine."""
    host_bytes: int | None = None
    """Memory of a machine; None where the GPUs are not this machine's."""

    @property
    def ranks(self) -> int:
        """All GPUs."""
        return self.gpus_per_node * self.nodes


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """A more faithful method that was weighed before the one that was taken."""

    method: str
    needed_bytes: int
    """Of one GPU, by the candidate that lacks least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a run goes on some GPUs, what it needs and takes, and why so."""

    model: str
    method: str
    """`full`, `lora` or `qlora`."""
    tried: tuple[Tried, ...]
    """Where the method was `auto`, what did not fit."""
    parameters: int
    trained_parameters: int
    image_tokens: int
    """Of a sample with the most images, as the model counts them."""
    card: Card
    global_batch: int
    length_tokens: int
    """Of a row, that memory is planned for; of all samples that share it."""
    batching: str
    """How samples become micro batches, and how large the largest is, in a clause."""
    data: DataFacts
    chosen: Candidate
    """What `train` does; where nothing fits, what lacks least."""
    runners_up: tuple[Candidate, ...]
    candidates: tuple[Candidate, ...]
    """All that were weighed, the best first."""
    fewer_gpus: tuple[Candidate, ...]
    """The best on half the GPUs, on a quarter, …."""
    changes: tuple[Change, ...]
    """Where nothing fits, what would make it."""
    faster: Candidate | None
    """A candidate outside of what the run file fixes that is a good deal faster."""
    steps: Steps | None
    """None where the number of rows is not known, and no `max_steps` says it."""
    host: Host
    disk: Disk
    price_per_hour: float | None
    """Of one GPU."""
    notes: tuple[str, ...]
    """What was assumed, one line each."""
    reasons: tuple[str, ...] = ()
    """Why it is so, as `explain` has found from all candidates."""
    corrected_by: str | None = None
    """The run directory whose measurements corrected it."""
    memory_factor: float = 1.0
    """By what they changed the memory that the computation needs."""
    time_factor: float = 1.0
    """And the time of a step."""
    sailplan: str = __version__

    @property
    def fits(self) -> bool:
        """Whether the GPUs have enough memory."""
        return self.chosen.fits

    @property
    def tokens_per_s(self) -> float:
        """Of the data, without padding, over all ranks."""
        return self.data.mean * self.global_batch / self.chosen.time.step_s

    @property
    def epoch_s(self) -> float | None:
        """Seconds of one pass over the rows, without evaluation and saving."""
        if self.steps is None or self.data.rows is None:
            return None
        return self.steps.per_epoch * self.chosen.time.step_s

    @property
    def total_s(self) -> float | None:
        """Seconds of the run, without evaluation and saving."""
        return None if self.steps is None else self.steps.total * self.chosen.time.step_s

    @property
    def cost(self) -> float | None:
        """Of the run in the user's currency."""
        if self.price_per_hour is None or self.total_s is None:
            return None
        return self.total_s / 3600 * self.price_per_hour * self.card.ranks

    @property
    def nodes(self) -> int:
        """Machines that the chosen candidate runs on."""
        return nodes_of(self.chosen.ranks, self.card.gpus_per_node)

    def as_dict(self, *, all_candidates: bool = False) -> dict[str, Any]:
        """Returns the plan as JSON can hold it, with what follows from its numbers."""
        kept = self if all_candidates else replace(self, candidates=())
        fields = to_json(kept)
        derived = ("fits", "tokens_per_s", "epoch_s", "total_s", "cost")
        written = {"disk_bytes": self.disk.written_bytes}
        return {**fields, **written, **{name: getattr(self, name) for name in derived}}

    def text(self) -> str:
        """Returns the text of the run directory's file."""
        return json.dumps(self.as_dict(), indent=2) + "\n"


def read_plan(path: Path) -> Plan:
    """Reads a plan that was written.

    Raises:
        OutputError: The file cannot be read, or is no plan of this version.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        names = {field.name for field in dataclasses.fields(Plan)}
        return from_json(Plan, {name: fields[name] for name in names})
    except OSError as error:
        got = f"{path} cannot be read ({error.strerror})"
        raise OutputError(got, todo="plan the run again") from None
    except (ValueError, TypeError, KeyError) as error:
        got = f"{path} is no plan of this version of sailplan ({type(error).__name__})"
        raise OutputError(got, todo="plan the run again") from None
