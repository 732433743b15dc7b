"""Findings that a row has by what the run asks for, or by what the other rows are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sailplan.data.lengths import stops_training
from sailplan.inspect.findings import Problem, Tally
from sailplan.inspect.survey import Survey

if TYPE_CHECKING:
    from sailplan.run.config import Run


def judge_lengths(run: Run, found: Survey, limit: int | None, tally: Tally) -> None:
    """Adds the rows that are too long, as errors where training would stop at them."""
    long = np.flatnonzero(found.length_tokens > (limit or np.inf))
    rule = run.get("over_length")
    stops = stops_training(len(long), len(found.whole), rule)
    for index in long.tolist():
        message = f"{found.length_tokens[index]} tokens, more than {limit}"
        tally.add(
            found.split.name,
            found.split.numbers[index],
            Problem(
                name="over-long",
                message=message if stops else f"{message}: dropped",
                todo="" if stops else "nothing, or raise max_length or lower max_pixels",
            ),
            severity="error" if stops else "warning",
        )


def judge_text_only(run: Run, found: Survey, *, crosses: bool, name: str, tally: Tally) -> None:
    """Adds the rows without an image, where others have some.

    Args:
        run: The run.
        found: The rows.
        crosses: Whether images reach the model by cross-attention only.
        name: The model's family.
        tally: Is added to.
    """
    without = found.whole[found.num_images[found.whole] == 0]
    if not len(without) or len(without) == len(found.whole):
        return
    ranks = (run.launch.gpus_per_node or run.launch.processes or 1) * run.launch.nodes
    share = f"{len(without)} of {len(found.whole)} rows have no image"
    if crosses:
        message = f"{share}, which {name} mixes with others on one process only"
        todo = "leave them out, or train on one process"
    else:
        message = (
            f"{share}; where a whole micro batch has none, a small black image that is not trained "
            "on keeps the vision tower in step on every rank (under ZeRO-3 and FSDP, and where the "
            "vision tower or the projector trains)"
        )
        todo = "nothing: the collator adds it"
    problem = Problem(name="text-only-rows", message=message, todo=todo)
    for index in without.tolist():
        tally.add(
            found.split.name,
            found.split.numbers[index],
            problem,
            severity="error" if crosses and ranks > 1 else None,
        )
