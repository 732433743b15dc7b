"""The plan and the launcher's own words: what a run fixes, and what a plan settles."""

from __future__ import annotations

import dataclasses
from typing import cast

from sailplan.launcher.preset import PRESETS, asked_preset
from sailplan.plan.record import Plan
from sailplan.run.blocks import Strategy
from sailplan.run.config import Run
from sailplan.run.method import AUTO, MICRO_BATCH, with_method


def asked_strategy(run: Run) -> tuple[Strategy | None, tuple[str, ...]]:
    """Returns the strategy that a run file asks for, None where it is open, and what was not used.

    Raises:
        RunFileError: accelerate's own configuration cannot be read.
    """
    if run.launch.strategy != AUTO:
        return run.launch.strategy, ()
    asked = asked_preset(run)
    if asked is None:
        inner = next((name for name in ("deepspeed", "fsdp") if run.get(name)), None)
        if inner is None:
            return None, ()
        name = "zero3" if inner == "deepspeed" else "fsdp2"
        note = f"`{inner}: …` of the run file shards; it is planned as {name}"
        return cast(Strategy, name), (note,)
    strategy = asked.strategy if asked.strategy in PRESETS else asked.strategy.partition("_")[0]
    return cast(Strategy, strategy if strategy in PRESETS else "ddp"), asked.notes


def with_plan(run: Run, plan: Plan) -> Run:
    """Returns a run with what a plan chose for what it leaves open; written values stay.

    Args:
        run: The run.
        plan: Of this run.
    """
    if run.get("method") == AUTO:
        run = with_method(run, plan.method)
    explicit = dict(run.explicit)
    if explicit.get(MICRO_BATCH) == AUTO:
        explicit[MICRO_BATCH] = plan.chosen.micro_batch
    explicit.setdefault("gradient_checkpointing", plan.chosen.checkpointing)
    launch = run.launch
    if launch.strategy == AUTO and asked_strategy(run)[0] is None:
        launch = launch.model_copy(update={"strategy": plan.chosen.strategy})
    return dataclasses.replace(run, explicit=explicit, launch=launch)
