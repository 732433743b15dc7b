"""What the fields of a run file say of steps, of the host and of the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sailplan.plan.choice.candidates import Candidate
from sailplan.plan.cost.host import Disk, Host, Saving, disk_space, host_memory
from sailplan.plan.cost.optimizers import state_bytes
from sailplan.plan.cost.steps import Steps, count_steps
from sailplan.plan.profile import Profile
from sailplan.plan.sharding import Sharding
from sailplan.plan.workload import Workload

if TYPE_CHECKING:
    from sailplan.run.config import Run


def steps_of(run: Run, rows: int | None, chosen: Candidate) -> Steps | None:
    """Returns the optimizer steps of a run; None where neither rows nor `max_steps` say it."""
    if rows is None and run.get("max_steps") <= 0:
        return None
    per_step = chosen.micro_batch * chosen.accumulation * chosen.ranks
    return count_steps(
        rows=run.get("max_steps") * per_step if rows is None else rows,
        micro_batch=chosen.micro_batch,
        accumulation=chosen.accumulation,
        ranks=chosen.ranks,
        epochs=run.get("num_train_epochs"),
        max_steps=run.get("max_steps"),
        drop_last=bool(run.get("dataloader_drop_last")),
    )


def host_of(run: Run, profile: Profile, sharding: Sharding) -> Host:
    """Returns the memory of each machine that a run needs."""
    workers = int(run.get("dataloader_num_workers") or 0)
    return host_memory(profile, sharding, workers=workers)


def disk_of(
    run: Run, profile: Profile, workload: Workload, sharding: Sharding, steps: Steps | None
) -> Disk:
    """Returns the disk space that a run needs; of one checkpoint where its steps are not known."""
    states = state_bytes(workload.optimizer, profile)
    kept = states.of_parameters
    if sharding.strategy.startswith("zero"):  # with float32 copies of what trains
        kept = states.of_float32 + 4 * profile.trained_parameters
    elif sharding.strategy == "fsdp2":
        kept = states.of_float32
    saving = Saving(
        strategy=str(run.get("save_strategy")),
        steps=float(run.get("save_steps")),
        limit=run.get("save_total_limit"),
        only_model=bool(run.get("save_only_model")),
    )
    return disk_space(
        profile,
        workload,
        sharding,
        state_bytes=kept,
        saving=saving,
        total_steps=steps.total if steps else 1,
        epochs=steps.epochs if steps else run.get("num_train_epochs"),
    )
