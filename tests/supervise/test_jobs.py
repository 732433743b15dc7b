"""How a run stands by its files and its training job together."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from sailplan.run.failure import Failure, write_failure
from sailplan.run.paths import RunPaths
from sailplan.run.state import RunState, State, write_state
from sailplan.slurm import standing as jobs
from sailplan.supervise.runs import RunSummary, look_at
from tests.support.runs import ELSEWHERE

NOW = time.time()


def job(state: jobs.State, words: str, **values: Any) -> jobs.JobStanding:
    """A training job."""
    fixed = {"job_id": 12, "kind": "train", "log": "/log", "submitted_at": NOW - 3600}
    return jobs.JobStanding(state=state, words=words, **{**fixed, **values})


def run(folder: Path, state: State | None, *train: jobs.JobStanding, **values: Any) -> RunSummary:
    """A run on another machine whose file says a state, and whose training job stands so."""
    paths = RunPaths(folder)
    paths.run_file.write_text("model_name_or_path: a/b\n")
    if state is not None:
        fixed = {"step": 5, "max_steps": 100, "pid": 1, "host": ELSEWHERE}
        times = {"started_at": NOW - 600, "updated_at": NOW - 60}
        write_state(paths.state_file, RunState(state=state, **{**fixed, **times, **values}))
    return look_at(folder, train)


@pytest.fixture(autouse=True)
def clock_that_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps it as late as when the times of this file were made, however long others take."""
    monkeypatch.setattr(time, "time", lambda: NOW)


WAITS = job("waiting", "waits for jobs of a higher priority", restarts=1)
RUNS = job("running", "running on node1", slurm_state="RUNNING", started_at=NOW - 600)
RUNS_AGAIN = job("running", "running on node1", slurm_state="RUNNING", started_at=NOW - 10)


@pytest.mark.parametrize("state", [None, "starting", "running", "stopped"])
def test_run_whose_job_waits_is_queued(tmp_path: Path, state: State | None) -> None:
    one = run(tmp_path, state, WAITS)
    why = "train 12 waits for jobs of a higher priority"
    assert (one.state, one.why, one.is_over) == ("queued", why, False)


def test_run_that_waits_after_a_failure_says_what_it_was(tmp_path: Path) -> None:
    one = run(tmp_path, "failed", WAITS, why="the loss is NaN at step 5")
    assert one.state == "queued"
    assert one.why.endswith("; before: the loss is NaN at step 5")


def test_run_that_waits_after_a_sudden_end_says_the_first_real_error(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    echo = Failure(rank=0, kind="connection", error="reset by peer", exit_code=1, time=NOW - 30)
    first = Failure(rank=3, kind="unknown", error="ValueError: no\\n more", exit_code=1, time=NOW)
    old = Failure(rank=1, kind="unknown", error="of yesterday", exit_code=1, time=NOW - 86400)
    for failure in (echo, first, old):
        write_failure(paths.failures, failure)
    one = run(tmp_path, "running", WAITS)
    assert one.why.endswith(f"; before: rank 3 failed: {first.error}")


def test_run_whose_job_runs_is_not_taken_for_killed_however_silent(tmp_path: Path) -> None:
    silent = {"started_at": NOW - 7200, "updated_at": NOW - 7100}
    assert run(tmp_path, "running", RUNS, **silent).state == "running"
    assert run(tmp_path, "running", **silent).state in ("running", "killed")


def test_run_whose_job_has_just_begun_starts(tmp_path: Path) -> None:
    assert run(tmp_path, None, RUNS).state == "starting"
    one = run(tmp_path, "failed", RUNS_AGAIN, why="rank 1 failed after step 5")
    assert (one.state, one.why) == ("starting", "before: rank 1 failed after step 5")
    assert run(tmp_path, "stopped", RUNS_AGAIN).state == "starting"


def test_run_that_has_stopped_is_not_over_while_its_job_may_be_queued_again(
    tmp_path: Path,
) -> None:
    one = run(tmp_path, "stopped", RUNS, why="asked by the stop file")
    assert (one.state, one.why, one.is_over) == ("stopped", "asked by the stop file", False)
    assert run(tmp_path, "finished", RUNS).is_over


@pytest.mark.parametrize(
    ("slurm_state", "words", "standing"),
    [
        ("NODE_FAIL", "failed: a node has failed (node2)", "killed"),
        ("TIMEOUT", "failed: its time of 8:00:00 was over before it had stopped", "killed"),
        ("FAILED", "failed: exit code 3", "failed"),
        ("", "failed: it was started again 3 times and came no further", "failed"),
    ],
)
def test_run_whose_job_has_failed_ends_with_its_words(
    tmp_path: Path, slurm_state: str, words: str, standing: str
) -> None:
    ended = {"started_at": NOW - 600, "ended_at": NOW - 10}
    one = run(tmp_path, "running", job("failed", words, slurm_state=slurm_state, **ended))
    assert (one.state, one.why, one.is_over) == (standing, f"train 12 {words}", True)


def test_run_whose_job_was_cancelled_is_killed_or_stopped(tmp_path: Path) -> None:
    gone = job("cancelled", "cancelled by user 0", slurm_state="CANCELLED", ended_at=NOW - 10)
    assert run(tmp_path, "running", gone).state == "killed"
    one = run(tmp_path, "stopped", gone, why="asked by the stop file")
    assert (one.state, one.why) == ("stopped", "train 12 cancelled by user 0")
    waited = job("cancelled", "cancelled while it waited", slurm_state="CANCELLED")
    RunPaths(tmp_path).state_file.unlink()
    one = run(tmp_path, None, waited)
    assert (one.state, one.why) == ("stopped", "train 12 cancelled while it waited")


def test_run_that_failed_by_itself_says_its_own_reason(tmp_path: Path) -> None:
    ended = {"slurm_state": "FAILED", "started_at": NOW - 600, "ended_at": NOW - 50}
    one = run(tmp_path, "failed", job("failed", "failed: exit code 8", **ended), why="NaN")
    assert (one.state, one.why) == ("failed", "NaN")


def test_job_that_failed_before_training_began_is_the_runs_failure(tmp_path: Path) -> None:
    ended = {"slurm_state": "FAILED", "started_at": NOW - 20, "ended_at": NOW - 10}
    words = "failed: there is no model a/b"
    for state in (None, "stopped"):
        one = run(tmp_path, state, job("failed", words, **ended))
        assert (one.state, one.why) == ("failed", f"train 12 {words}")


def test_run_that_was_launched_beside_its_job_stands_by_its_files(tmp_path: Path) -> None:
    over = job("cancelled", "cancelled", slurm_state="CANCELLED", ended_at=NOW - 3000)
    assert run(tmp_path, "running", over).state == "running"
    here = {"host": socket.gethostname(), "pid": os.getpid(), "started_at": NOW}
    assert run(tmp_path, "running", WAITS, **here).state == "running"


def test_without_slurm_the_files_count(tmp_path: Path) -> None:
    unknown = job("unknown", "how it stands is not known: there is no squeue on this machine")
    assert run(tmp_path, "stopped", unknown, why="SIGTERM came").why == "SIGTERM came"
    assert run(tmp_path, "running", unknown).state == "running"
