"""A Slurm cluster for these tests: one for all, or one of its own for a test that breaks it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator

import pytest

from tests.slurm.cluster import Cluster, what_is_missing


@pytest.fixture(scope="session", autouse=True)
def slurm_is_here() -> None:
    """Skips these tests where no cluster can start; fails them with SAILPLAN_REQUIRE_SLURM=1."""
    missing = what_is_missing()
    if missing is None:
        return
    if os.environ.get("SAILPLAN_REQUIRE_SLURM") == "1":
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(scope="session")
def shared_cluster(slurm_is_here: None) -> Iterator[Cluster]:
    """Two nodes for all tests; for fixtures that outlive a test. Nobody may break it."""
    with Cluster(2) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """Two nodes that do nothing; a job that the test leaves is cancelled, and said."""
    yield shared_cluster
    left = shared_cluster.cancel_all()
    if left:
        warnings.warn(f"the test left jobs, now cancelled: {left}", stacklevel=1)
    shared_cluster.wait_for_nodes()


@pytest.fixture
def fresh_cluster() -> Iterator[Callable[..., Cluster]]:
    """Starts clusters for one test, which may break them: `fresh_cluster(extra="KillWait=3")`."""
    started: list[Cluster] = []

    def start(num_nodes: int = 2, *, extra: str = "") -> Cluster:
        started.append(Cluster(num_nodes, extra=extra))
        return started[-1]

    yield start
    for cluster in started:
        cluster.stop()
