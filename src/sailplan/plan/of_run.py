"""From a run file to its plan: finds the model and the rows, then weighs what is left open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sailplan.errors import ModelError
from sailplan.plan.facts.batches import Batches
from sailplan.plan.facts.data import DataFacts
from sailplan.plan.facts.draft import Draft
from sailplan.plan.facts.lengths import ASSUMED_TEXT_TOKENS, assumed_facts, data_facts
from sailplan.plan.facts.model import ModelFacts, model_facts
from sailplan.plan.make import Corrections, Planner
from sailplan.plan.record import Card, Plan
from sailplan.plan.simulation.profiles import Profiles, Simulate, simulate_really
from sailplan.run.blocks import Strategy

if TYPE_CHECKING:
    from sailplan.run.config import Run


def plan_of(
    run: Run,
    card: Card,
    *,
    strategy: Strategy | None = None,
    corrections: Corrections | None = None,
    simulate: Simulate = simulate_really,
) -> Plan:
    """Plans a run.

    Args:
        run: The run.
        card: The GPUs.
        strategy: What the run file asks for; None where it leaves that open.
        corrections: What measured runs say of such plans.
        simulate: Makes a profile.

    Raises:
        SailplanError: The model or the data is not to be had, the global batch does not divide, or
            there are more GPUs than rows.
    """
    model = model_facts(run)
    try:
        return _plan(run, model, card, strategy, corrections or Corrections(), simulate)
    except ModelError as error:
        known = of_weights(model)
        if not known:
            raise
        raise ModelError(error.got, allowed=error.allowed, todo=f"{known}; {error.todo}") from None


def _plan(
    run: Run,
    model: ModelFacts,
    card: Card,
    strategy: Strategy | None,
    corrections: Corrections,
    simulate: Simulate,
) -> Plan:
    def image_tokens(height: int, width: int) -> int:
        one = DataFacts(
            rows=None,
            lengths=(64,),
            trained_share=0.5,
            images_per_row=1,
            image_height=height,
            image_width=width,
            sampled=0,
        )
        batches = Batches(run=run, config=model.config, data=one, global_batch=1, weights=dict)
        draft = Draft(run=run, model=model, data=one, gpu=planner.gpu, batches=batches)
        profiles = Profiles(micro_batches=(1,), sized=draft.sized, simulate=simulate)
        return profiles(draft.workload("single", 1, 1, True)).image_tokens

    planner = Planner(
        run=run,
        model=model,
        data=assumed_facts(run, model, 1),
        card=card,
        strategy=strategy,
        corrections=corrections,
        simulate=simulate,
    )
    facts = data_facts(run, model, image_tokens)
    plan = replace(planner, data=facts).plan()
    enough = plan.image_tokens + ASSUMED_TEXT_TOKENS
    if facts.sampled or run.get("max_length") or enough <= facts.longest:
        return plan
    return replace(planner, data=assumed_facts(run, model, enough)).plan()


def of_weights(model: ModelFacts) -> str:
    """Returns what the size of a model's files still says where it cannot be simulated."""
    if model.folder is None:
        return ""
    size = sum(_size(path) for path in model.folder.glob("*.safetensors"))
    if not size:
        return ""
    gb = size / 1e9
    return (
        f"what its files still say: {gb:.1f} GB of weights; in 16 bits full fine-tuning keeps "
        f"about {8 * gb:.1f} GB of them, gradients and AdamW over all GPUs, LoRA {gb:.1f} GB and "
        f"QLoRA {0.3 * gb:.1f} GB on each, without activations"
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
