"""Between two simulated micro batches a third is what it is when it is simulated itself."""

from __future__ import annotations

import dataclasses

import pytest

from sailplan.plan.cost.memory import shard
from sailplan.plan.sharding import Sharding
from sailplan.plan.simulation.interpolate import interpolate
from sailplan.plan.simulation.simulate import simulate
from sailplan.plan.workload import Workload
from tests.plan.tiny import CONFIG


@pytest.mark.parametrize("micro_batch", [3, 8], ids=["between", "beyond"])
def test_interpolated_profile_equals_the_simulated_one_in_every_phase(micro_batch: int) -> None:
    workload = Workload(
        config=CONFIG.to_dict(), micro_batch=1, length_tokens=256, checkpointing="non_reentrant"
    )
    profiles = {
        rows: simulate(dataclasses.replace(workload, micro_batch=rows))
        for rows in (2, 4, micro_batch)
    }
    share = (micro_batch - 2) / 2
    found = interpolate(profiles[2], profiles[4], tokens=share, images=share)
    one = Sharding(strategy="single", ranks=1, ranks_per_node=1)
    expected = shard(profiles[micro_batch], workload, one)
    memory = shard(found, workload, one)
    assert memory.phases.keys() == expected.phases.keys()
    for phase in expected.phases:
        assert memory.total(phase) == pytest.approx(expected.total(phase), rel=0.01), phase
