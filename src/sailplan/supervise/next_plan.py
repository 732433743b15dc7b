"""What comes after a launch that ran out of memory: settings that need less, and keep the batch.

Pure: the rungs of the ladder, and the planner's candidates where there are GPUs
(docs/decisions/0023-after-out-of-memory.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from sailplan.plan.choice.candidates import TIGHT, Candidate
from sailplan.plan.choice.choose import choose
from sailplan.plan.record import Plan
from sailplan.run.config import Run
from sailplan.run.method import AUTO, MICRO_BATCH
from sailplan.run.quantised import whole_under

ACCUMULATION = "gradient_accumulation_steps"
CHECKPOINTING = "gradient_checkpointing"
EVAL_BATCH = "per_device_eval_batch_size"
SHARDED_SAVE = "save_sharded"
STRATEGY = "launch.strategy"

SETTINGS = (MICRO_BATCH, ACCUMULATION, CHECKPOINTING, EVAL_BATCH, SHARDED_SAVE, STRATEGY)
"""What may be changed after a launch that ran out of memory; none of it makes another run."""

Place = Literal["loading", "training", "evaluating", "saving"]

_SHARDS_MORE: Mapping[str, str] = MappingProxyType(
    {"ddp": "zero2", "zero1": "zero2", "zero2": "zero3"}
)
_INTO_HOST: Mapping[str, str] = MappingProxyType(
    {"single": "zero3_offload", "zero3": "zero3_offload"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """What is known of a launch that ran out of memory."""

    place: Place
    """Where it did."""
    strategy: str
    processes: int
    on_gpu: bool
    """Whether the ranks trained on GPUs."""
    of_host: bool
    """Whether it is the machine's memory that ran out, not a GPU's."""
    may_change_strategy: bool
    """Whether another strategy can go on: there is no checkpoint yet, and the machine can."""
    memory_ratio: float = 1.0
    """Measured over planned peak of its first steps, where they were measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Next:
    """What the next launch does otherwise."""

    settings: Mapping[str, Any]
    """Fields of the run file and their new values."""
    words: str
    """It in a few words, each new value beside the old one."""


def next_plan(run: Run, plan: Plan | None, failed: Failed) -> Next | None:
    """Returns what to change so that the run needs less memory and has the same global batch.

    Args:
        run: The run as it was launched, nothing left open.
        plan: One that leaves micro batch, checkpointing and, where it may change, the strategy
            open; None where there are no GPUs to plan for.
        failed: What is known of the launch.

    Returns:
        None where nothing is left to change.
    """
    run = run.for_world_size(failed.processes)
    if failed.place == "saving":
        return _other_save(run, failed)
    if failed.of_host and failed.on_gpu:
        return None  # what a GPU is given to do decides little of it
    smaller = _smaller_evaluation(run) if failed.place == "evaluating" else None
    if smaller is not None:
        return smaller
    if plan is not None:
        candidate = _candidate(run, plan, failed)
        if candidate is not None:
            return _next(run, failed, _settings_of(candidate))
    return _rung(run, failed)


def with_settings(run: Run, settings: Mapping[str, Any]) -> Run:
    """Returns a run with some settings changed, whoever wrote them."""
    fields = {name: value for name, value in settings.items() if name != STRATEGY}
    launch = run.launch
    if STRATEGY in settings:
        launch = launch.model_copy(update={"strategy": settings[STRATEGY]})
    return replace(run, explicit={**run.explicit, **fields}, launch=launch)


def values(run: Run) -> dict[str, Any]:
    """Returns what a run says of all settings that may be changed."""
    fields = {name: run.get(name) for name in SETTINGS if name != STRATEGY}
    return {**fields, STRATEGY: run.launch.strategy}


def opened(run: Run, failed: Failed) -> Run:
    """Returns the run of which `next_plan` wants a plan: all open that may be changed."""
    settled = run.for_world_size(failed.processes)
    share = settled.get(MICRO_BATCH) * settled.get(ACCUMULATION)
    left_open = (ACCUMULATION, CHECKPOINTING)
    explicit = {name: value for name, value in run.explicit.items() if name not in left_open}
    explicit |= {MICRO_BATCH: AUTO, "global_batch_size": share * failed.processes}
    strategy = AUTO if failed.may_change_strategy else failed.strategy
    return replace(
        run, explicit=explicit, launch=run.launch.model_copy(update={"strategy": strategy})
    )


def _other_save(run: Run, failed: Failed) -> Next | None:
    """What takes the memory of a save is the whole model on one rank, which ZeRO-3 can leave."""
    gathers = failed.strategy.startswith("zero3") and not run.get("use_peft")
    if not gathers or run.get(SHARDED_SAVE):
        return None
    return Next(settings={SHARDED_SAVE: True}, words="checkpoints in shards (save_sharded)")


def _smaller_evaluation(run: Run) -> Next | None:
    rows = run.get(EVAL_BATCH)
    if rows <= 1:
        return None
    words = f"{EVAL_BATCH} {rows // 2} instead of {rows}"
    return Next(settings={EVAL_BATCH: rows // 2}, words=words)


def _candidate(run: Run, plan: Plan, failed: Failed) -> Candidate | None:
    """Returns the fastest candidate that needs clearly less than what failed was planned to need.

    What failed needed more than the GPU has, whatever was planned: its plan was too low by at least
    that, and so may those of all others be.
    """
    was = next(
        (
            one
            for one in plan.candidates
            if one.strategy == failed.strategy
            and one.micro_batch == run.get(MICRO_BATCH)
            and one.checkpointing == bool(run.get(CHECKPOINTING))
        ),
        None,
    )
    if was is None:
        return None
    limit = TIGHT * min(was.needed_bytes, was.card_bytes / max(1.0, failed.memory_ratio))
    others = [
        one
        for one in plan.candidates
        # Loading happens before there is a batch: only the division of the weights changes it.
        if failed.place != "loading" or one.strategy != was.strategy
    ]
    clearly = [one for one in others if one.needed_bytes <= limit]
    if clearly:
        return choose(clearly).chosen
    least = min(others, key=lambda one: one.needed_bytes, default=was)
    return least if least.needed_bytes < was.needed_bytes else None


def _settings_of(candidate: Candidate) -> dict[str, Any]:
    return {
        MICRO_BATCH: candidate.micro_batch,
        ACCUMULATION: candidate.accumulation,
        CHECKPOINTING: candidate.checkpointing,
        STRATEGY: candidate.strategy,
    }


def _rung(run: Run, failed: Failed) -> Next | None:
    """Returns the next rung: a smaller micro batch, then checkpointing, then more sharding."""
    loads = failed.place == "loading"
    micro = run.get(MICRO_BATCH)
    share = micro * run.get(ACCUMULATION)
    if micro > 1 and not loads:
        smaller = max(rows for rows in range(1, micro // 2 + 1) if share % rows == 0)
        return _next(run, failed, {MICRO_BATCH: smaller, ACCUMULATION: share // smaller})
    if not run.get(CHECKPOINTING) and not loads:
        return _next(run, failed, {CHECKPOINTING: True})
    further = {**_SHARDS_MORE, **(_INTO_HOST if failed.on_gpu else {})}.get(failed.strategy)
    if further is None or not failed.may_change_strategy or further in whole_under(run):
        return None
    return _next(run, failed, {STRATEGY: further})


def _next(run: Run, failed: Failed, wanted: Mapping[str, Any]) -> Next:
    before = {**values(run), STRATEGY: failed.strategy}
    settings = {name: value for name, value in wanted.items() if value != before[name]}
    if MICRO_BATCH in settings:  # both say the global batch
        settings[ACCUMULATION] = wanted[ACCUMULATION]
    words = []
    if MICRO_BATCH in settings:
        now = f"{settings[MICRO_BATCH]} × {settings[ACCUMULATION]}"
        words.append(f"micro batch {now} instead of {before[MICRO_BATCH]} × {before[ACCUMULATION]}")
    if CHECKPOINTING in settings:
        words.append(f"{'' if settings[CHECKPOINTING] else 'no '}gradient checkpointing")
    if STRATEGY in settings:
        words.append(f"strategy {settings[STRATEGY]} instead of {failed.strategy}")
    return Next(settings=settings, words=", ".join(words))
