"""A plan's reasons in words, from its numbers and those of neighbouring candidates alone."""

from __future__ import annotations

from collections.abc import Iterator

from sailplan.plan.choice.candidates import TIGHT, Candidate
from sailplan.plan.choice.choose import SIMPLEST_FIRST, Change
from sailplan.plan.record import Plan
from sailplan.plan.sharding import GIB
from sailplan.sizes import duration

_STATES = ("optimizer", "parameters", "gradients")
"""What is there whatever the micro batch."""

_NOUNS = {
    "parameters": "the weights",
    "gradients": "the gradients",
    "optimizer": "the optimizer",
    "activations": "the activations",
    "gathered": "the gathered weights",
    "buckets": "the buckets of gradients",
    "context": "the CUDA context",
}

_CHANGES = {
    "checkpointing": "gradient_checkpointing: {value}",
    "micro_batch": "per_device_train_batch_size: {value}",
    "strategy": "launch.strategy: {value}",
    "max_length": "max_length: {value}",
    "method": "method: {value}",
    "gpus": "{value} GPUs",
    "gpu": "a {value}",
}


def gib(size: float) -> str:
    """Returns a size in GiB, as a card's memory is counted."""
    amount = size / GIB
    return f"{amount:.0f} GiB" if amount >= 100 else f"{amount:.1f} GiB"


def explain(plan: Plan) -> tuple[str, ...]:
    """Returns why the plan is as it is, the weightiest reason first; one line each."""
    reasons = _why_it_fits(plan) if plan.fits else _why_nothing_fits(plan)
    return (*_why_the_method(plan), *reasons)


def _why_the_method(plan: Plan) -> Iterator[str]:
    for tried in plan.tried:
        needs = f"needs {gib(tried.needed_bytes)} of {gib(plan.card.card_bytes)} per GPU"
        yield f"{plan.method}: {tried.method} {needs} at the least"


def _why_it_fits(plan: Plan) -> Iterator[str]:
    chosen = plan.chosen
    yield from _why_the_strategy(plan)
    other = _neighbour(plan, checkpointing=not chosen.checkpointing)
    if other is not None:
        yield _why_checkpointing(chosen, other)
    larger = [
        one
        for one in plan.candidates
        if (one.strategy, one.checkpointing) == (chosen.strategy, chosen.checkpointing)
        and one.micro_batch > chosen.micro_batch
    ]
    if larger:
        yield _why_not_larger(chosen, min(larger, key=lambda one: one.micro_batch))
    if chosen.tight:
        share = chosen.needed_bytes / chosen.card_bytes
        yield (
            f"tight: {share:.0%} of the memory, above {TIGHT:.0%} the allocator begins to search; "
            "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
        )


def _why_the_strategy(plan: Plan) -> Iterator[str]:
    """Yields why the simpler strategies are not taken, and what the chosen one costs."""
    chosen = plan.chosen
    weighed = {one.strategy for one in plan.candidates}
    if len(weighed) > 1 and chosen.strategy == min(weighed, key=SIMPLEST_FIRST.index):
        yield f"{chosen.strategy}: it fits, and no other is faster by much"
    for strategy in SIMPLEST_FIRST[: SIMPLEST_FIRST.index(chosen.strategy)]:
        same = [one for one in plan.candidates if one.strategy == strategy]
        if not same:
            continue
        near = min(same, key=lambda one: (one.missing_bytes, one.time.step_s))
        if near.fits:
            how = "is tight" if near.tight else f"takes {duration(near.time.step_s)} a step"
            yield f"{chosen.strategy}: {strategy} {how} ({gib(near.needed_bytes)})"
        else:
            yield f"{chosen.strategy}: {_what_is_too_much(near)} under {strategy}"
    if chosen.time.communication_s > 0.05 * chosen.time.step_s:
        share = chosen.time.communication_s / chosen.time.step_s
        yield f"{share:.0%} of a step is waiting for other ranks"
    if chosen.time.offload_s:
        share = chosen.time.offload_s / chosen.time.step_s
        yield f"{share:.0%} of a step is the optimizer on the CPU and the copies to it"


def _what_is_too_much(one: Candidate) -> str:
    """Says what does not fit: one kind alone, what is always there, or all of it."""
    for kind in _STATES:
        if one.peak.get(kind, 0) > one.card_bytes:
            return f"{_NOUNS[kind]} alone {_is(kind)} {gib(one.peak[kind])} per GPU"
    states = sum(one.peak.get(kind, 0) for kind in _STATES)
    if states > one.card_bytes:
        largest = max(_STATES, key=lambda kind: one.peak.get(kind, 0))
        size = gib(one.peak[largest])
        return f"{_NOUNS[largest]} {_is(largest)} {size} of {gib(states)} per GPU of states alone"
    kind = one.largest_kind
    return (
        f"{gib(one.needed_bytes)} per GPU are needed, "
        f"{gib(one.peak[kind])} of them {_NOUNS[kind].removeprefix('the ')},"
    )


def _is(kind: str) -> str:
    return "is" if kind in ("optimizer", "context") else "are"


def _why_checkpointing(chosen: Candidate, other: Candidate) -> str:
    if chosen.checkpointing:
        if not other.fits:
            return f"checkpointing: without it {gib(other.needed_bytes)} per GPU are needed"
        how = "is tight" if other.tight else f"takes {duration(other.time.step_s)} a step"
        return f"checkpointing: without it the run {how}"
    saved = other.time.step_s / chosen.time.step_s - 1
    return f"no checkpointing: it fits without, and a step is {saved:.0%} longer with it"


def _why_not_larger(chosen: Candidate, larger: Candidate) -> str:
    what = f"micro batch {chosen.micro_batch}: {larger.micro_batch}"
    if not larger.fits:
        return f"{what} would need {gib(larger.needed_bytes)}"
    if larger.tight:
        return f"{what} would be tight ({gib(larger.needed_bytes)})"
    return f"{what} is no faster ({duration(larger.time.step_s)} a step)"


def _neighbour(plan: Plan, *, checkpointing: bool) -> Candidate | None:
    """Returns the best candidate that differs in checkpointing, at any micro batch."""
    same = [
        one
        for one in plan.candidates
        if one.strategy == plan.chosen.strategy and one.checkpointing == checkpointing
    ]
    return same[0] if same else None


def _why_nothing_fits(plan: Plan) -> Iterator[str]:
    chosen = plan.chosen
    missing = f"{gib(chosen.missing_bytes)} more than a {plan.card.gpu} has"
    yield f"nothing fits: {chosen.words} comes nearest and needs {missing}"
    yield _what_is_too_much(chosen).rstrip(",") + f" under {chosen.strategy}"


def change(one: Change) -> str:
    """Returns a change as a line: what to write, and what is needed then."""
    what = _CHANGES[one.what].format(value=one.value)
    then = f"{gib(one.needed_bytes)} per GPU"
    if one.candidate is None:
        return f"{what} ({then})"
    return f"{what} ({then}, {duration(one.candidate.time.step_s)} a step: {one.candidate.words})"


def fewer(plan: Plan) -> tuple[str, ...]:
    """Returns what fewer GPUs would take, a line for each number of them."""
    lines = []
    for one in plan.fewer_gpus:
        count = f"{one.ranks} GPU{'s' if one.ranks > 1 else ''}"
        if one.fits:
            slower = one.time.step_s / plan.chosen.time.step_s
            tight = ", tight" if one.tight else ""
            lines.append(f"{count}: {one.words}, {slower:.1f} times as long a step{tight}")
        else:
            lines.append(f"{count}: {gib(one.missing_bytes)} per GPU are missing ({one.words})")
    return tuple(lines)
