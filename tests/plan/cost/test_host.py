"""Host memory and disk: DeepSpeed's own formulas, and what checkpoints come to."""

from __future__ import annotations

import pytest

from sailplan.plan.choice.candidates import sharding_of
from sailplan.plan.cost.host import Saving, disk_space, host_memory, offload_bytes
from sailplan.plan.workload import Adapter, Workload
from tests.plan.made import made

BILLION = 10**9


@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_offload_equals_deepspeeds_own_estimate(gpus: int, nodes: int) -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2

    layout = {"num_gpus_per_node": gpus, "num_nodes": nodes}
    ours = {"ranks": gpus * nodes, "nodes": nodes}
    for parameters_too in (False, True):
        theirs, *_ = zero3(BILLION, 10**7, cpu_offload_params=parameters_too, **layout)
        told = offload_bytes(BILLION, zero3=True, parameters_too=parameters_too, **ours)
        assert told == theirs
    assert offload_bytes(BILLION, zero3=False, **ours) == zero2(BILLION, **layout)[0]


def work(**fields: object) -> Workload:
    return Workload(config={}, micro_batch=1, length_tokens=64, **fields)  # type: ignore[arg-type]


def test_host_holds_ranks_workers_and_what_is_gathered_for_saving() -> None:
    profile = made(work(), 8 * BILLION)
    alone = host_memory(profile, sharding_of("single", 1, 8), workers=0)
    with_workers = host_memory(profile, sharding_of("single", 1, 8), workers=4)
    eight = host_memory(profile, sharding_of("zero3", 8, 8), workers=0)
    assert with_workers.processes_bytes > alone.processes_bytes
    assert eight.processes_bytes == 8 * alone.processes_bytes
    assert eight.saving_bytes == 2 * profile.trained_parameters
    offloaded = host_memory(profile, sharding_of("zero3_offload", 8, 8), workers=0)
    assert offloaded.training_bytes == pytest.approx(18 * 1.5 * 8 * BILLION, rel=1e-6)


def test_checkpoints_take_14_bytes_a_weight_under_zero_and_12_under_fsdp2() -> None:
    profile = made(work(), BILLION)
    saving = Saving(strategy="steps", steps=500, limit=2, only_model=False)
    trained = profile.trained_parameters
    for strategy, states, size in (("zero3", 12, 14), ("fsdp2", 8, 12)):
        disk = disk_space(
            profile,
            work(),
            sharding_of(strategy, 8, 8),  # type: ignore[arg-type]
            state_bytes=states * trained,
            saving=saving,
            total_steps=5000,
            epochs=3,
        )
        assert disk.checkpoint_bytes == size * trained
        assert disk.checkpoints == 3
        assert disk.written_bytes == 3 * disk.checkpoint_bytes + disk.model_bytes


def test_checkpoint_of_an_adapter_is_small_and_its_merge_is_not() -> None:
    adapted = work(adapter=Adapter(rank=8, targets=("q_proj",)))
    profile = made(adapted, 8 * BILLION)
    saving = Saving(strategy="epoch", steps=500, limit=None, only_model=True)
    disk = disk_space(
        profile,
        adapted,
        sharding_of("single", 1, 1),
        state_bytes=8 * profile.trained_parameters,
        saving=saving,
        total_steps=129,
        epochs=3,
    )
    assert disk.checkpoint_bytes == 4 * profile.trained_parameters
    assert disk.merge_bytes == 2 * profile.parameters


@pytest.mark.parametrize(
    ("strategy", "steps", "limit", "count"),
    [
        ("no", 500, None, 0),
        ("epoch", 500, None, 3),
        ("epoch", 500, 1, 2),
        ("steps", 500, None, 3),  # 500, 1000, and the last
        ("steps", 0.5, None, 2),
        ("steps", 600, 5, 2),
    ],
)
def test_checkpoints_are_counted_with_the_one_being_written(
    strategy: str, steps: float, limit: int | None, count: int
) -> None:
    saving = Saving(strategy=strategy, steps=steps, limit=limit, only_model=False)
    assert saving.checkpoints(1200, 3.0) == count
