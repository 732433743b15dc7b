"""The choice: the fastest candidate that fits, and what would have to change where none does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from sailplan.plan.choice.candidates import (
    ALONE,
    MOST_ROWS,
    SHARDED,
    TIGHT,
    Bench,
    Candidate,
    Wishes,
)
from sailplan.run.blocks import Strategy

if TYPE_CHECKING:
    from sailplan.hardware.catalogue import GpuModel

NEAR = 0.03
"""Steps that differ by less count as equally fast: the simplest division wins then."""

LEAST_LENGTH = 256
"""Tokens below which shortening rows is no advice."""

SIMPLEST_FIRST = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2", "zero3_offload")
"""All strategies, by how much they divide and move."""

What = Literal[
    "checkpointing",
    "micro_batch",
    "strategy",
    "max_length",
    "method",
    "gpus",
    "gpu",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One thing that would make a run fit that does not."""

    what: What
    value: str
    """Its new value, as a run file writes it."""
    needed_bytes: int
    """Of one GPU, then."""
    candidate: Candidate | None
    """The candidate that would fit; None where it was not simulated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What the candidates come to."""

    chosen: Candidate
    """The fastest that fits; where none does, the one that lacks least."""
    runners_up: tuple[Candidate, ...]
    """What else fits, the fastest first, one of each strategy and kind of checkpointing."""
    candidates: tuple[Candidate, ...]
    """All, the best first."""


def choose(candidates: Iterable[Candidate]) -> Choice:
    """Chooses among candidates; there must be one.

    One that fits with room to spare is preferred to a tight one, whatever their speeds.
    """
    ranked = sorted(candidates, key=_rank)
    fastest = ranked[0]
    if fastest.fits:
        equal = [
            one
            for one in ranked
            if one.fits
            and one.tight == fastest.tight
            and one.time.step_s <= fastest.time.step_s * (1 + NEAR)
        ]
        chosen = min(equal, key=_simplicity)
    else:
        chosen = fastest
    seen = {(chosen.strategy, chosen.checkpointing)}
    runners_up = []
    for one in ranked:
        kind = (one.strategy, one.checkpointing)
        if one.fits and kind not in seen:
            seen.add(kind)
            runners_up.append(one)
    return Choice(chosen=chosen, runners_up=tuple(runners_up), candidates=tuple(ranked))


def _rank(one: Candidate) -> tuple[bool, bool, float]:
    by = one.time.step_s if one.fits else float(one.needed_bytes)
    return not one.fits, one.tight, by


def _simplicity(one: Candidate) -> tuple[int, bool, int]:
    return SIMPLEST_FIRST.index(one.strategy), one.checkpointing, one.needed_bytes


def fewer_gpus(bench: Bench, wishes: Wishes, ranks: int) -> tuple[Candidate, ...]:
    """Returns the best candidate on half the GPUs, on a quarter, …, whether it fits or not.

    Fewer GPUs need another strategy and another micro batch where those are left open.
    """
    found = []
    count = ranks
    while count % 2 == 0:
        count //= 2
        strategies = _strategies(wishes, count)
        candidates = list(bench.all(replace(wishes, strategies=strategies), count))
        if candidates:
            found.append(choose(candidates).chosen)
    return tuple(found)


def _strategies(wishes: Wishes, ranks: int) -> tuple[Strategy, ...]:
    """Returns what is weighed on another number of ranks."""
    if len(wishes.strategies) > 1:
        return SHARDED if ranks > 1 else ALONE
    return wishes.strategies if ranks > 1 else ("single",)


def changes(
    bench: Bench,
    wishes: Wishes,
    nearest: Candidate,
    *,
    other_methods: Callable[[], Iterator[tuple[str, Bench]]],
    shorter: Callable[[int], Bench] | None,
    gpus: Iterable[GpuModel],
    rows: int | None,
) -> tuple[Change, ...]:
    """Returns what would make the run fit, each by itself, the smallest change first.

    Args:
        bench: Weighs candidates of the run as it is.
        wishes: What the run says.
        nearest: The candidate that lacks least.
        other_methods: Yields less demanding methods, each with the bench of it.
        shorter: Gives the bench of the run with shorter rows; None where they cannot be shorter.
        gpus: Larger ones to name.
        rows: Rows that there are.
    """
    weighed: list[Change | None] = []
    ranks = nearest.ranks
    both = replace(wishes, checkpointing=(True,))
    if True not in wishes.checkpointing:
        weighed.append(_fitting(bench, both, ranks, "checkpointing", lambda _: "true"))
    share = wishes.global_batch // ranks
    smaller = tuple(m for m in range(1, min(share, MOST_ROWS) + 1) if share % m == 0)
    if len(smaller) > len(wishes.micro_batches):
        relaxed = replace(both, micro_batches=smaller)
        weighed.append(_fitting(bench, relaxed, ranks, "micro_batch", lambda c: str(c.micro_batch)))
        both = relaxed
    if len(wishes.strategies) == 1:
        strategies = SHARDED if ranks > 1 else ALONE
        relaxed = replace(both, strategies=strategies)
        weighed.append(_fitting(bench, relaxed, ranks, "strategy", lambda c: c.strategy))
    weighed.append(_shorter(bench, nearest, shorter))
    for method, other in other_methods():
        found = _fitting(other, both, ranks, "method", _always(method))
        weighed.append(found)
        if found:
            break
    weighed.append(_more_gpus(bench, both, ranks, rows))
    needed = min(gpus, key=lambda gpu: _room(gpu, nearest), default=None)
    if needed is not None and needed.memory_bytes * TIGHT >= nearest.needed_bytes:
        bytes_ = nearest.needed_bytes
        weighed.append(Change(what="gpu", value=needed.name, needed_bytes=bytes_, candidate=None))
    return tuple(change for change in weighed if change is not None)


def _room(gpu: GpuModel, nearest: Candidate) -> float:
    """Orders GPUs: the smallest that is large enough first."""
    enough = gpu.memory_bytes * TIGHT >= nearest.needed_bytes
    return gpu.memory_bytes if enough else float("inf")


def _fitting(
    bench: Bench, wishes: Wishes, ranks: int, what: What, value: Callable[[Candidate], str]
) -> Change | None:
    candidates = list(bench.all(wishes, ranks))
    best = choose(candidates).chosen if candidates else None
    if best is None or not best.fits:
        return None
    return Change(what=what, value=value(best), needed_bytes=best.needed_bytes, candidate=best)


def _always(value: str) -> Callable[[Candidate], str]:
    return lambda _: value


def _shorter(
    bench: Bench, nearest: Candidate, shorter: Callable[[int], Bench] | None
) -> Change | None:
    """Returns the length at which the candidate fits, where there is one of some use."""
    held = nearest.peak.get("activations", 0)
    share = 1 - nearest.missing_bytes * 1.1 / held if held else 0.0
    for part in (share, share * 0.8):
        length = int(bench.data.longest * part) // 64 * 64
        if shorter is None or length < LEAST_LENGTH:
            return None
        candidate = shorter(length).weigh(
            nearest.strategy,
            nearest.ranks,
            nearest.micro_batch,
            nearest.accumulation,
            nearest.checkpointing,
        )
        if candidate.fits:
            needed = candidate.needed_bytes
            return Change(
                what="max_length", value=str(length), needed_bytes=needed, candidate=candidate
            )
    return None


def _more_gpus(bench: Bench, wishes: Wishes, ranks: int, rows: int | None) -> Change | None:
    for count in (ranks * 2, ranks * 4, ranks * 8, ranks * 16):
        if wishes.global_batch % count or (rows is not None and count > rows):
            return None
        strategies = SHARDED if len(wishes.strategies) > 1 or ranks == 1 else wishes.strategies
        found = _fitting(
            bench, replace(wishes, strategies=strategies), count, "gpus", lambda c: str(c.ranks)
        )
        if found:
            return found
    return None
