"""A cluster of eight GPUs a node that is well, as its records tell, to be made sick."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sailplan.hardware.driver import Driver, GpuState
from sailplan.preflight.cluster.gather import gather
from sailplan.preflight.cluster.ranks import neighbours
from sailplan.preflight.cluster.records import (
    Gathered,
    NodeRecord,
    PairRate,
    Place,
    RankRecord,
    Wanted,
)
from sailplan.preflight.finding import Finding
from tests.preflight.machines import gpu

FOLDER = Path("/shared/runs/.sailplan-smoke-1")
H100 = "NVIDIA H100 80GB HBM3"
SOFTWARE = {"Python": "3.11.9", "sailplan": "0.1.0", "torch": "2.11.0", "deepspeed": "0.19.8"}
CACHE = Place(path="/shared/hub", inode=7, kind="nfs4", writable=True)


def well(num_nodes: int = 2, *, gpus: int = 8) -> Gathered:
    """Everything that a healthy cluster would report."""
    hosts = tuple(f"node{number}" for number in range(1, num_nodes + 1))
    wanted = Wanted(
        hosts=hosts,
        ranks_per_node=gpus,
        gpus_per_node=gpus,
        gpu="H100-80GB",
        token="12",
        folder=FOLDER,
        software=SOFTWARE,
        places=(CACHE,),
        strategy="zero3",
    )
    ranks = (
        rank(number * gpus + index, host, index, hosts)
        for number, host in enumerate(hosts)
        for index in range(gpus)
    )
    nodes = tuple(node(host, gpus=gpus) for host in hosts)
    return Gathered(wanted=wanted, nodes=nodes, ranks=tuple(ranks))


def node(host: str, *, gpus: int = 8, **different: Any) -> NodeRecord:
    """A node that is well."""
    states = tuple(gpu(index, memory_errors_ever=0) for index in range(gpus))
    record = NodeRecord(
        host=host,
        software=SOFTWARE,
        driver=driver(*states),
        kernel_xids=(),
        token="12",
        places=(CACHE,),
    )
    return replace(record, **different)


def driver(*gpus: GpuState, version: str = "580.65.06") -> Driver:
    """A node's driver."""
    return Driver(version=version, cuda_version=(13, 0), gpus=gpus)


def rank(number: int, host: str, index: int, hosts: tuple[str, ...]) -> RankRecord:
    """A rank that is as fast as the others."""
    pairs = (pair for pair in neighbours(hosts) if host in pair)
    return RankRecord(
        rank=number,
        host=host,
        stage="done",
        device=f"cuda:{index}",
        gpu=H100,
        world_size=8 * len(hosts),
        backend="nccl",
        engine="DeepSpeedEngine, stage 3",
        imports_s=9.0,
        meeting_s=2.0,
        first_reduce_s=0.8,
        bytes_per_s=330e9,
        inside_bytes_s=360e9,
        pairs=tuple(PairRate(hosts=(pair[0], pair[1]), bytes_s=330e9) for pair in pairs),
        step_s=0.02,
        first_loss=1.5,
        last_loss=0.9,
        own_step_s=0.004,
        clocks_s=tuple(100.0 + look for look in range(5)),
        xids=(),
        slowed=(),
    )


def with_node(found: Gathered, host: str, **different: Any) -> Gathered:
    """The same where one node is different."""
    nodes = (replace(one, **different) if one.host == host else one for one in found.nodes)
    return replace(found, nodes=tuple(nodes))


def with_ranks(found: Gathered, *numbers: int, **different: Any) -> Gathered:
    """The same where some ranks are different."""
    ranks = (replace(one, **different) if one.rank in numbers else one for one in found.ranks)
    return replace(found, ranks=tuple(ranks))


def lines(found: Gathered) -> dict[str, Finding]:
    """What the doctor says of it."""
    return dict(gather(found))


def wrong(found: Gathered) -> dict[str, Finding]:
    """The faults alone."""
    return {name: line for name, line in lines(found).items() if line.mark == "failed"}
