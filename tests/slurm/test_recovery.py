"""A run on two nodes is stopped, thrown out or broken in every way, and comes back by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sailplan.supervise.attempt_log import read_attempts
from tests.slurm.cluster import Cluster
from tests.slurm.runs import Meeting, Submitted, sailplan, submit, tiny_run, until
from tests.support.killed import curve, whole
from tests.support.plant import planted

Curve = list[tuple[int, float, float, int]]


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


def start(
    cluster: Cluster, folder: Path, model: Path, *flags: str, what: str, **fault: int
) -> tuple[Submitted, Meeting]:
    """Submits the run and returns when it has come to where it is to be disturbed."""
    meeting = Meeting(folder)
    run = submit(
        cluster,
        tiny_run(folder, model),
        *("--nodes", "2", *flags),
        output_dir=folder / "run",
        environment=meeting.planted(what, **fault),
    )
    meeting.wait(run)
    return run, meeting


def came_back(run: Submitted, expected: Curve, *, kinds: list[str]) -> None:
    """Asserts that a run has gone on as if nothing had happened, in the same job."""
    run.wait("COMPLETED")
    assert curve(run.paths.path) == expected
    assert [one.kind for one in read_attempts(run.paths.attempts_file)] == kinds
    assert {one.job for one in read_attempts(run.paths.attempts_file)} == {run.train}
    assert json.loads(run.paths.state_file.read_text())["state"] == "finished"


def test_run_whose_steps_are_signalled_saves_and_comes_back(
    cluster: Cluster, tiny_model: Callable[[str], Path], tmp_path: Path, undisturbed: Curve
) -> None:
    run, meeting = start(cluster, tmp_path, tiny_model("llama"), what="meet_in_step", step=4)
    cluster.run("scancel", "--signal=USR1", str(run.train))
    meeting.go.touch()
    came_back(run, undisturbed, kinds=["stopped", "finished"])
    assert "goes on from" in run.log()


def test_run_whose_time_is_nearly_over_saves_and_comes_back(
    cluster: Cluster, tiny_model: Callable[[str], Path], tmp_path: Path, undisturbed: Curve
) -> None:
    flags = ("--slurm.time", "00:02:00", "--slurm.stop_before_s", "100")
    run, meeting = start(
        cluster, tmp_path, tiny_model("llama"), *flags, what="meet_in_step", step=4
    )
    until(run.paths.stop_file.exists, run.log)
    meeting.go.touch()
    came_back(run, undisturbed, kinds=["stopped", "finished"])


@pytest.mark.parametrize("partition", ["low", "grace"])
def test_run_that_makes_room_for_another_comes_back(
    cluster: Cluster,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    undisturbed: Curve,
    partition: str,
) -> None:
    flags = ("--slurm.partition", partition)
    run, meeting = start(
        cluster, tmp_path, tiny_model("llama"), *flags, what="meet_in_step", step=4
    )
    other = cluster.submit("sleep 5", "--partition=gpu", "--nodes=2", "--exclusive")
    if partition == "grace":
        until(run.paths.stop_file.exists, run.log)
    meeting.go.touch()
    cluster.wait_for(other, "COMPLETED", timeout_s=120)
    run.wait("COMPLETED")
    assert curve(run.paths.path) == undisturbed
    kinds = [one.kind for one in read_attempts(run.paths.attempts_file)]
    assert kinds in (["stopped", "finished"], ["interrupted", "finished"])


def test_run_that_is_queued_again_by_hand_comes_back(
    cluster: Cluster, tiny_model: Callable[[str], Path], tmp_path: Path, undisturbed: Curve
) -> None:
    run, meeting = start(cluster, tmp_path, tiny_model("llama"), what="meet_in_step", step=4)
    cluster.run("scontrol", "requeue", str(run.train))
    until(lambda: cluster.job(run.train)["Restarts"] == "1", run.log)
    meeting.go.touch()
    run.wait("COMPLETED")
    assert curve(run.paths.path) == undisturbed


@pytest.mark.parametrize("node", ["node1", "node2"])
@pytest.mark.parametrize(
    ("what", "fault"), [("meet_in_step", {"step": 4}), ("meet_in_save", {})], ids=["step", "save"]
)
def test_run_whose_node_crashes_comes_back(
    fresh_cluster: Callable[..., Cluster],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    undisturbed: Curve,
    what: str,
    fault: dict[str, int],
    node: str,
) -> None:
    cluster = fresh_cluster(2, extra="SlurmdTimeout=5")
    run, meeting = start(cluster, tmp_path, tiny_model("llama"), what=what, **fault)
    assert whole(run.paths.path) == ([3] if what == "meet_in_step" else [])
    cluster.crash(node)
    meeting.go.touch()
    cluster.revive(node)
    came_back(run, undisturbed, kinds=["lost", "finished"])


def test_run_that_always_fails_is_given_up_at_the_cap_and_says_why(
    cluster: Cluster, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tiny_run(tmp_path, tiny_model("llama"), slurm={"max_restarts": 1})
    broken = planted(what="fail_in_step", step=0, rank=0)
    run = submit(cluster, file, output_dir=tmp_path / "run", environment=broken)
    record = run.wait("FAILED")
    assert record["Restarts"] == "1"
    attempts = read_attempts(run.paths.attempts_file)
    assert [one.kind for one in attempts] == ["unknown", "unknown"]
    told = sailplan(cluster, "runs", tmp_path).stdout
    assert "failed" in told
    assert "the planted bug" in " ".join(told.split())
