"""What Slurm knows of jobs, as a real one tells it, and what is said when it does not answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sailplan.slurm.queue import Lookup, QueuedJob, long_state, look_up, read_history, read_queue
from tests.slurm.cluster import Cluster
from tests.slurm.cluster.cluster import polling


@pytest.fixture
def asked(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, which Slurm's commands of this process speak with."""
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    return cluster


def found(job_id: int, state: str, reason: str = "") -> QueuedJob:
    """A job, when Slurm has it in a state, for a reason where one is given."""
    for _ in polling(20):
        job = look_up([job_id]).jobs[job_id]
        if job.state == state and reason in job.reason:
            return job
    raise AssertionError(f"{job} is not {state} {reason}")


def test_jobs_in_all_states_are_told_at_once(asked: Cluster) -> None:
    running = asked.submit("sleep 100", "--nodes=2", "--exclusive", "--time=1-02:03:00")
    asked.wait_for(running, "RUNNING")
    waiting = asked.submit("true", "--nodes=2", "--time=5")
    after = asked.submit("true", f"--dependency=afterok:{waiting}")
    held = asked.submit("true", "--hold", "--job-name=a|b c=\x1b[31m")
    found(waiting, "PENDING", "Resources")

    lookup = look_up([running, waiting, after, held, 4711])

    assert lookup.trouble == ""
    assert lookup.jobs.keys() == {running, waiting, after, held}
    one = lookup.jobs[running]
    assert (one.phase, one.nodes, one.time_limit) == ("active", "node[1-2]", "1-02:03:00")
    assert one.started_at is not None
    one = lookup.jobs[waiting]
    assert (one.phase, one.nodes, one.time_limit) == ("waiting", "", "5:00")
    assert one.partition == "gpu"
    one = lookup.jobs[after]
    assert (one.phase, one.dependency) == ("waiting", f"afterok:{waiting}(unfulfilled)")
    assert lookup.jobs[held].reason == "JobHeldUser"
    asked.cancel_all()


def test_jobs_that_have_ended_say_how(asked: Cluster) -> None:
    failed = asked.submit("exit 3")
    after = asked.submit("true", f"--dependency=afterok:{failed}", "--kill-on-invalid-dep=yes")
    killed = asked.submit("kill -KILL $$")
    good = asked.submit("true")
    for job in (failed, after, killed, good):
        asked.wait_for(job)
    jobs = look_up([failed, after, killed, good]).jobs
    assert {job.phase for job in jobs.values()} == {"ended"}
    assert (jobs[failed].state, jobs[failed].exit_code) == ("FAILED", 3)
    assert (jobs[after].state, jobs[after].reason) == ("CANCELLED", "DependencyNeverSatisfied")
    assert (jobs[killed].exit_code, jobs[killed].signal) == (None, 9)
    assert (jobs[good].state, jobs[good].exit_code, jobs[good].signal) == ("COMPLETED", 0, None)
    assert jobs[good].ended_at is not None


def test_job_that_was_queued_again_is_counted(asked: Cluster, tmp_path: Path) -> None:
    job = asked.submit(f"[ -e {tmp_path}/again ] || {{ touch {tmp_path}/again; sleep 100; }}")
    asked.wait_for(job, "RUNNING")
    asked.run("scontrol", "requeue", job)
    again = found(job, "PENDING", "BeginTime")
    assert (again.restarts, again.phase) == (1, "waiting")
    asked.wait_for(job, "COMPLETED")
    assert look_up([job]).jobs[job].restarts == 1


def test_only_job_that_slurm_does_not_know_is_no_trouble(asked: Cluster) -> None:
    assert look_up([4711], ever=[4711]) == Lookup()
    assert look_up([]) == Lookup()


def test_variables_of_the_user_change_nothing(
    asked: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = asked.submit("true")
    asked.wait_for(job, "COMPLETED")
    before = look_up([job])
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SQUEUE_FORMAT2", "Name")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    assert look_up([job]) == before


def test_machine_without_slurm_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look_up([12]) == Lookup(trouble="there is no squeue on this machine")


def test_controller_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = tmp_path / "squeue"
    command.write_text("#!/bin/bash\nexec /bin/sleep 100\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look_up([12]) == Lookup(trouble="squeue has not answered for 5 s")


@pytest.mark.parametrize(
    ("state", "long"),
    [
        ("CG", "COMPLETING"),
        ("COMPLETING", "COMPLETING"),
        ("CANCELLED by 1000", "CANCELLED"),
        ("CANCELLED+", "CANCELLED"),
        ("REQUEUE_HOLD", "REQUEUE_HOLD"),
        ("SE", "SPECIAL_EXIT"),
        ("", ""),
    ],
)
def test_state_is_read_in_all_its_forms(state: str, long: str) -> None:
    assert long_state(state) == long


def test_accounting_is_read_with_who_cancelled() -> None:
    told = (
        "12|CANCELLED by 1000|0:15|node[1-2]|1796142010|1796142011|08:00:00|gpu\n"
        "13|OUT_OF_MEMORY|0:125|node1|1796142010|1796142011|UNLIMITED|gpu\n"
        "14|CANCELLED by 0|0:0|None assigned|Unknown|1796142011|08:00:00|gpu\n"
        "14.batch|FAILED|1:0\n"
        "slurmdbd: warning\n"
    )
    first, second, third = read_history(told)
    assert (first.job_id, first.state, first.cancelled_by) == (12, "CANCELLED", "1000")
    assert (first.nodes, first.started_at, first.signal) == ("node[1-2]", 1796142010.0, 15)
    assert (second.state, second.phase) == ("OUT_OF_MEMORY", "ended")
    assert (third.nodes, third.started_at) == ("", None)


@pytest.mark.slow
def test_job_that_the_controller_has_forgotten_is_known_by_accounting(
    fresh_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = fresh_cluster(1, accounting=True, extra="MinJobAge=2")
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    failed = cluster.submit("exit 3")
    cancelled = cluster.submit("sleep 100")
    cluster.wait_for(failed)
    cluster.wait_for(cancelled, "RUNNING")
    cluster.run("scancel", cancelled)
    jobs = [failed, cancelled]
    for _ in polling(200, every_s=1):  # the controller forgets once a minute
        if not look_up(jobs).jobs:
            break
    assert look_up(jobs) == Lookup()
    assert look_up(jobs, ever=[failed]).jobs.keys() == {failed}
    found = look_up(jobs, ever=jobs).jobs
    assert (found[failed].state, found[failed].exit_code) == ("FAILED", 3)
    assert (found[cancelled].state, found[cancelled].cancelled_by) == ("CANCELLED", "0")
    assert found[cancelled].nodes == "node1"
    assert found[cancelled].ended_at is not None


def test_lines_that_are_no_jobs_are_left_out() -> None:
    assert list(read_queue("squeue: a warning\n\n12\x1fRUNNING\n")) == []
