"""What a run keeps that goes on with other ranks than before: the samples of an optimizer step."""

from __future__ import annotations

import dataclasses

from sailplan.errors import RunFileError
from sailplan.run.config import Run
from sailplan.run.method import AUTO, MICRO_BATCH

ACCUMULATION = "gradient_accumulation_steps"


def with_batch_of(
    run: Run, *, global_batch: int, saved_by: int, world_size: int
) -> tuple[Run, tuple[str, ...]]:
    """Returns a run whose optimizer steps have as many samples as those of its checkpoint.

    The micro batch stays where it can, and is the largest smaller one that divides where not; the
    accumulation follows. Another `global_batch_size` in the run file wins; so does another
    accumulation or micro batch on as many ranks as before.

    Args:
        run: The run.
        global_batch: Samples of a step before the checkpoint.
        saved_by: The ranks of then.
        world_size: The ranks of now.

    Returns:
        The run, and what is to be told.

    Raises:
        RunFileError: The ranks cannot share so many samples.
    """
    micro, asked = run.get(MICRO_BATCH), run.get("global_batch_size")
    if micro == AUTO:  # the plan divides global_batch_size
        return run, ()
    product = micro * run.get(ACCUMULATION) * world_size
    wanted = product if asked is None else asked
    if wanted != global_batch and (asked is not None or world_size == saved_by):
        note = f"the global batch changes from {global_batch} to {wanted}, as the run file says"
        return run, (note,)
    if product == global_batch:
        return run, ()
    share, rest = divmod(global_batch, world_size)
    if rest:
        fitting = [str(ranks) for ranks in range(1, global_batch + 1) if not global_batch % ranks]
        raise RunFileError(
            f"the run goes on with a global batch of {global_batch}, which {world_size} ranks "
            "cannot share evenly",
            allowed=f"{', '.join(fitting)} ranks",
            todo="start as many, or write another global_batch_size",
        )
    fitting_micro = max(rows for rows in range(1, min(micro, share) + 1) if not share % rows)
    steps = share // fitting_micro
    explicit = {**run.explicit, MICRO_BATCH: fitting_micro, ACCUMULATION: steps}
    ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
    note = (
        f"global batch {global_batch} kept: micro batch {fitting_micro} × {ranks} × accumulation "
        f"{steps}"
    )
    return dataclasses.replace(run, explicit=explicit), (note,)
