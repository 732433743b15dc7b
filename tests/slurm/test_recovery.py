"""A run on two nodes is stopped, thrown out and broken in every way, and comes back by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from sailplan.supervise.attempt_log import read_attempts
from tests.slurm.cluster import Cluster
from tests.slurm.runs import LIMIT_S, Submitted, meeting, sailplan, submit, tiny_run, until
from tests.support.killed import curve, whole
from tests.support.plant import planted

Curve = list[tuple[int, float, float, int]]
Disturb = Callable[[Cluster, Submitted], None]

STEP = "meet_in_step"
SAVE = "meet_in_save"


@pytest.fixture(scope="module")
def undisturbed(
    shared_cluster: Cluster,
    tiny_model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Curve:
    """The curve of the run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    file = tiny_run(folder, tiny_model("llama"))
    run = submit(shared_cluster, file, "--nodes", "2", output_dir=folder / "run")
    run.wait("COMPLETED")
    found = curve(folder / "run")
    assert [point[0] for point in found] == list(range(1, 9))
    return found


def signalled(cluster: Cluster, run: Submitted) -> None:
    """Signals the ranks' step, not the script."""
    cluster.run("scancel", "--signal=USR1", str(run.train))


def out_of_time(cluster: Cluster, run: Submitted) -> None:
    """Has the job's time be nearly over; what comes after it may take longer again."""
    hours, minutes, seconds = map(int, cluster.job(run.train)["RunTime"].split(":"))
    left_s = 25
    limit = math.ceil((hours * 3600 + minutes * 60 + seconds + left_s) / 60)
    cluster.run("scontrol", "update", f"JobId={run.train}", f"TimeLimit={limit}")
    until(lambda: cluster.state(run.train) == "PENDING", run.log)
    cluster.run("scontrol", "update", f"JobId={run.train}", "TimeLimit=30")


def queued_again(cluster: Cluster, run: Submitted) -> None:
    """Has the job queued again by hand."""
    cluster.run("scontrol", "requeue", str(run.train))
    until(lambda: cluster.state(run.train) == "PENDING", run.log)


def preempted(cluster: Cluster, run: Submitted) -> None:
    """Has another job of a higher partition take the nodes."""
    other = cluster.submit("sleep 1", "--partition=gpu", "--nodes=2", "--exclusive")
    cluster.wait_for(other, "COMPLETED", timeout_s=LIMIT_S)


def first_node_crashes(cluster: Cluster, run: Submitted) -> None:
    """Takes the node away on which the script and the first rank are."""
    crashes(cluster, run, cluster.nodes[0])


def second_node_crashes(cluster: Cluster, run: Submitted) -> None:
    """Takes the other node away."""
    crashes(cluster, run, cluster.nodes[1])


def crashes(cluster: Cluster, run: Submitted, node: str) -> None:
    """Takes a node away until Slurm has noticed."""
    cluster.crash(node)
    until(lambda: cluster.state(run.train) != "RUNNING", run.log)
    cluster.revive(node)


def comes_back(
    cluster: Cluster,
    file: Path,
    disturbances: list[tuple[str, int, Disturb]],
    expected: Curve,
) -> list[str]:
    """Disturbs a run, once or again and again, and returns the kinds of ends of its launches.

    It is held at a place, given by its kind and a step, and disturbed there; then it must come back
    by itself, in the same job, and go on as if nothing had happened.
    """
    places = [file.parent / f"there-{number}" for number, _ in enumerate(disturbances)]
    faults = [
        meeting(there, what, step)
        for there, (what, step, _) in zip(places, disturbances, strict=True)
    ]
    run = submit(
        cluster,
        file,
        *("--nodes", "2"),
        output_dir=file.parent / "run",
        environment=planted(*faults),
    )
    for there, (_, _, disturb) in zip(places, disturbances, strict=True):
        until(there.exists, run.log)
        disturb(cluster, run)
    run.wait("COMPLETED")
    assert curve(run.paths.path) == expected
    assert json.loads(run.paths.state_file.read_text())["state"] == "finished"
    attempts = read_attempts(run.paths.attempts_file)
    assert {one.job for one in attempts} == {run.train}
    assert run.log().count(": goes on from") == len(disturbances)  # so the first rank says it
    return [one.kind for one in attempts]


@pytest.mark.timeout(900)
def test_run_that_is_stopped_again_and_again_comes_back_each_time(
    cluster: Cluster, tiny_model: Callable[[str], Path], tmp_path: Path, undisturbed: Curve
) -> None:
    file = tiny_run(tmp_path, tiny_model("llama"), slurm={"partition": "grace", "time": "00:30:00"})
    disturbances = [
        (STEP, 1, signalled),
        (STEP, 3, out_of_time),
        (STEP, 5, preempted),
        (STEP, 6, queued_again),
    ]
    kinds = comes_back(cluster, file, disturbances, undisturbed)
    assert kinds[:2] == ["stopped", "stopped"]
    assert kinds[-1] == "finished"
    assert set(kinds[2:-1]) <= {"stopped", "interrupted"}


@pytest.mark.timeout(900)
def test_run_whose_nodes_crash_in_a_step_and_in_a_save_comes_back(
    fresh_cluster: Callable[..., Cluster],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    undisturbed: Curve,
) -> None:
    cluster = fresh_cluster(2, extra="SlurmdTimeout=5")
    file = tiny_run(tmp_path, tiny_model("llama"))
    disturbances = [(STEP, 4, first_node_crashes), (SAVE, 6, second_node_crashes)]
    first, second, last = comes_back(cluster, file, disturbances, undisturbed)
    # Where the script's own node is left, Slurm tells it that the job ends, and it may even save.
    assert (first, last) == ("lost", "finished")
    assert second in ("lost", "interrupted", "stopped")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("disturbance", "partition"),
    [
        ((STEP, 4, signalled), "gpu"),
        ((SAVE, 3, signalled), "gpu"),
        ((STEP, 4, out_of_time), "gpu"),
        ((SAVE, 3, out_of_time), "gpu"),
        ((STEP, 4, preempted), "low"),
        ((SAVE, 3, preempted), "low"),
        ((SAVE, 3, preempted), "grace"),
        ((SAVE, 3, queued_again), "gpu"),
        ((STEP, 4, second_node_crashes), "gpu"),
        ((SAVE, 3, first_node_crashes), "gpu"),
    ],
)
def test_run_that_is_disturbed_once_comes_back(
    fresh_cluster: Callable[..., Cluster],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    undisturbed: Curve,
    disturbance: tuple[str, int, Disturb],
    partition: str,
) -> None:
    cluster = fresh_cluster(2, extra="SlurmdTimeout=5")
    file = tiny_run(
        tmp_path, tiny_model("llama"), slurm={"partition": partition, "time": "00:30:00"}
    )
    comes_back(cluster, file, [disturbance], undisturbed)


def test_run_that_always_fails_is_given_up_at_the_cap_and_says_why(
    cluster: Cluster, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tiny_run(tmp_path, tiny_model("llama"), slurm={"max_restarts": 1})
    broken = planted(what="fail_in_step", step=0, rank=0)
    then = ("--then", "merge,compare")
    run = submit(cluster, file, *then, output_dir=tmp_path / "run", environment=broken)
    record = run.wait("FAILED")
    assert record["Restarts"] == "1"
    attempts = read_attempts(run.paths.attempts_file)
    assert [one.kind for one in attempts] == ["unknown", "unknown"]
    assert whole(run.paths.path) == []
    told = sailplan(cluster, "runs", tmp_path).stdout
    assert "failed" in told
    assert "the planted bug" in " ".join(told.split())
    for kind in ("merge", "compare"):
        run.wait("CANCELLED", kind=kind)
    told = sailplan(cluster, "runs", tmp_path).stdout
    assert f"merge {run.jobs['merge']}  run: cancelled, since train ({run.train}) failed" in told
    assert f"compare {run.jobs['compare']}  run: cancelled, since merge" in told


def test_run_without_memory_goes_on_in_the_same_job_with_the_next_plan(
    cluster: Cluster, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tiny_run(
        tmp_path,
        tiny_model("llama"),
        max_steps=2,
        global_batch_size=8,
        per_device_train_batch_size=4,
    )
    small = planted(what="out_of_memory", most_tokens=300)
    run = submit(cluster, file, output_dir=tmp_path / "run", environment=small)
    record = run.wait("COMPLETED")
    assert record["Restarts"] == "0"
    attempts = read_attempts(run.paths.attempts_file)
    assert [one.kind for one in attempts] == ["oom", "finished"]
    assert [one.micro_batch * one.accumulation for one in attempts] == [8, 8]
    assert attempts[1].micro_batch < attempts[0].micro_batch
    assert "on_oom: goes on from the beginning with micro batch" in run.log()
