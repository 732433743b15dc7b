"""Weighs all candidates of a run with as few simulations as settle the choice.

Strategies differ in the dtype of their weights: DeepSpeed casts them, DDP does not. What is
simulated for one kind is an approximation of another; a kind is simulated for itself where the
choice would fall on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sailplan.plan.choice.candidates import Bench, Candidate, Wishes
from sailplan.plan.choice.choose import choose
from sailplan.plan.profile import Profile
from sailplan.plan.simulation.profiles import Profiles
from sailplan.plan.workload import Workload
from sailplan.run.blocks import Strategy

Kind = tuple[str, str | None, str | None, str]


def kind_of(workload: Workload) -> Kind:
    """Returns what of a workload a strategy decides on."""
    adapter = workload.adapter.dtype if workload.adapter else None
    return workload.weights, workload.autocast, adapter, workload.checkpointing


@dataclass(kw_only=True, slots=True)
class Frugal:
    """Gives profiles: exact ones of the kinds that were settled, approximations of all others."""

    profiles: Profiles
    _settled: set[Kind] = field(default_factory=set)
    _bases: dict[bool, Workload] = field(default_factory=dict)
    """With checkpointing and without it, the first kind that was simulated."""

    def __call__(self, workload: Workload) -> Profile:
        """Returns a profile."""
        on = workload.checkpointing != "none"
        base = self._bases.get(on)
        if base is None:
            self.settle(workload)
        if kind_of(workload) in self._settled or base is None:
            return self.profiles(workload)
        return self.profiles.like(workload, base)

    def settle(self, workload: Workload) -> bool:
        """Has a kind simulated for itself; says whether that is new."""
        kind = kind_of(workload)
        new = kind not in self._settled
        self._settled.add(kind)
        self._bases.setdefault(workload.checkpointing != "none", workload)
        return new


def weigh(
    bench: Bench, frugal: Frugal, wishes: Wishes, ranks: int, *, first: Strategy
) -> list[Candidate]:
    """Returns all candidates; the one that would be chosen, and its kind, are exact.

    Args:
        bench: Weighs a candidate, with `frugal` as its profiles.
        frugal: Gives the profiles.
        wishes: What the run leaves open.
        ranks: All ranks.
        first: The strategy whose kind is simulated first.
    """
    order: Sequence[Strategy] = sorted(wishes.strategies, key=lambda name: name != first)
    ordered = replace(wishes, strategies=tuple(order))
    while True:
        candidates = list(bench.all(ordered, ranks))
        chosen = choose(candidates).chosen
        workload = bench.workload(
            chosen.strategy, chosen.micro_batch, chosen.accumulation, chosen.checkpointing
        )
        if not frugal.settle(workload):
            return candidates
