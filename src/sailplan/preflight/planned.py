"""The plan before a launch: it settles what the run leaves open, and stops what will not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from sailplan.errors import DataError, HardwareError, ModelError
from sailplan.hardware.detect import Machine
from sailplan.launcher.planned import asked_strategy, with_plan
from sailplan.launcher.strategy import divide, on_cpu
from sailplan.plan.choice.candidates import divisors
from sailplan.plan.choice.explain import change, gib
from sailplan.plan.facts.card import card_of
from sailplan.plan.of_run import plan_of
from sailplan.plan.record import Card, Plan
from sailplan.plan.store import NotKeptError, only_kept
from sailplan.run.config import Run
from sailplan.run.method import AUTO, MICRO_BATCH, is_open, with_method
from sailplan.sizes import duration

_MOST_ON_CPU = 8
"""Rows of a micro batch where nothing is planned: TRL's own default."""

_TOLD_REASONS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Ahead:
    """A run with everything settled, and the plan that did it."""

    run: Run
    """What is launched."""
    kept: Run
    """What is written as run.yaml: the micro batch and the strategy stay open for other GPUs."""
    plan: Plan | None
    """None where there is no GPU to plan for, or no plan to be had."""
    notes: tuple[str, ...]
    """What was decided, one line each."""


def plan_ahead(run: Run, machine: Machine, *, refuse: bool = True, here: bool = True) -> Ahead:
    """Plans a run for a machine's GPUs, and settles what it leaves open.

    Where there is no GPU, the rules of the launcher hold; where `launch.gpu` names one, what was
    planned for it before is looked up, and nothing is simulated.

    Args:
        run: The run.
        machine: The machine.
        refuse: Stop a run that does not fit. Otherwise only what is open is planned.
        here: Whether the machine is this one, whose GPUs then count before `launch.gpu`.

    Raises:
        HardwareError: The run does not fit the GPUs, by more than the plan may be wrong.
        RunFileError: The global batch does not divide over the ranks.
        ModelError, DataError: There is no plan, and the run leaves something open.
    """
    if on_cpu(run, machine):
        return _without_gpu(run, machine)
    if not refuse and not is_open(run):
        return Ahead(run=run, kept=run, plan=None, notes=())
    try:
        card = card_of(run, machine, here=here)
        strategy, _ = asked_strategy(run)
        plan = plan_of(run, card, strategy=strategy)
    except (ModelError, DataError, HardwareError) as error:
        # The ranks say what is wrong with a model or the data; what is merely unknown is no error.
        if is_open(run):
            raise
        return Ahead(run=run, kept=run, plan=None, notes=(f"no plan: {error}",))
    if refuse:
        refuse_what_does_not_fit(plan)
    settled = with_plan(run, plan)
    kept = with_method(run, plan.method) if run.get("method") == AUTO else run
    return Ahead(run=settled, kept=kept, plan=plan, notes=tuple(_told(plan)))


def refuse_what_does_not_fit(plan: Plan) -> None:
    """Refuses a plan whose memory is beyond the GPU's by more than it may be wrong.

    Raises:
        HardwareError: It is.
    """
    least = plan.chosen.needed_bytes * (1 - plan.chosen.memory.band)
    if plan.fits or least <= plan.card.card_bytes:
        return
    needs = f"{gib(plan.chosen.needed_bytes)} of {gib(plan.card.card_bytes)}"
    ways = "; or ".join(change(one) for one in plan.changes[:2])
    raise HardwareError(
        f"the run needs about {needs} per {plan.card.gpu} ({plan.chosen.words})",
        todo=f"what would fit: {ways or '`sailplan plan` tells'}; --no-preflight goes on",
    )


def _told(plan: Plan) -> Iterator[str]:
    chosen = plan.chosen
    needs = f"{gib(chosen.needed_bytes)} of {gib(chosen.card_bytes)} per GPU"
    warning = "" if plan.fits else "warning: it may not fit; "
    yield f"plan: {warning}{chosen.words}; {needs}, about {duration(chosen.time.step_s)} a step"
    yield from plan.reasons[:_TOLD_REASONS]
    has = plan.card.host_bytes
    if has is not None and plan.host.peak_bytes > has:
        yield (
            f"warning: about {gib(plan.host.peak_bytes)} of this machine's memory are needed, "
            f"and it has {gib(has)}"
        )


def _without_gpu(run: Run, machine: Machine) -> Ahead:
    notes: list[str] = []
    settled = kept = run
    if run.get("method") == AUTO:
        settled = kept = with_method(run, "full")
        notes.append("method full: there is no GPU whose memory would decide")
    if run.get(MICRO_BATCH) == AUTO:
        processes = divide(settled, machine).processes
        fitting = divisors(run.get("global_batch_size"), processes)
        micro = max(rows for rows in fitting if rows <= _MOST_ON_CPU)
        explicit = {**settled.explicit, MICRO_BATCH: micro}
        settled = dataclasses.replace(settled, explicit=explicit)
        notes.append(f"{MICRO_BATCH} {micro}: the largest up to {_MOST_ON_CPU} that divides")
    return Ahead(run=settled, kept=kept, plan=_kept_plan(run, machine), notes=tuple(notes))


def _kept_plan(run: Run, machine: Machine) -> Plan | None:
    """Returns the plan for the GPU that the run names, where it was made before."""
    if run.launch.gpu is None:
        return None
    try:
        with only_kept():
            card: Card = card_of(run, machine)
            return plan_of(run, card, strategy=asked_strategy(run)[0])
    except (NotKeptError, ModelError, DataError, HardwareError):
        return None
