"""`sailplan runs`, `logs`, `watch` and `cancel` on runs whose jobs are in a real Slurm."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sailplan.checkpoint.layout import quick_latest
from sailplan.run.paths import RunPaths
from sailplan.supervise.runs import look_at
from tests.cli.test_main import sailplan
from tests.slurm import runs
from tests.slurm.cluster import Cluster
from tests.slurm.cluster.cluster import polling
from tests.slurm.runs import tiny_run
from tests.slurm.submitted import steps, submit, train


@pytest.fixture
def asked(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    """The cluster, which the verbs of this process speak with, in a folder of its own."""
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return cluster


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """A run of a name that a shell would take apart."""
    return RunPaths(tmp_path / "runs" / "my run; $(x)")


@contextmanager
def verb(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A verb in a process of its own."""
    command = [sys.executable, "-m", "sailplan", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_step(paths: RunPaths, step: int, timeout_s: float = 120) -> None:
    for _ in polling(timeout_s):
        if (look_at(paths.path, ()).step or 0) >= step:
            return
    raise AssertionError(f"no step {step}: {look_at(paths.path)}")


def test_run_that_waits_is_told_followed_and_cancelled(asked: Cluster, paths: RunPaths) -> None:
    other = asked.submit("sleep 100", "--nodes=2", "--exclusive")
    asked.wait_for(other, "RUNNING")
    job = train(asked, paths, steps(paths, 5), ["--nodes=2"])
    merge = submit(asked, paths, "merge", "true", after=job)
    for _ in polling(20):
        code, out, _ = sailplan("runs")
        if "waits for nodes" in out:
            break
    assert code == 0
    name = "my run; $(x)"
    waits = f"train {job} waits for nodes with enough free GPUs, CPUs and memory"
    assert f"queued  {name}: {waits}" in out.splitlines()
    assert f"merge {merge}  {name}: waits for train ({job})" in out.splitlines()
    (found,) = json.loads(sailplan("runs", "--json")[1])
    assert found["state"] == "queued"
    assert [(one["job_id"], one["kind"]) for one in found["jobs"]] == [
        (job, "train"),
        (merge, "merge"),
    ]
    assert f"queued, {waits}" in sailplan("logs", name)[2]
    assert f"merge {merge}: waits for train ({job})" in sailplan("logs", name, "--job", "merge")[2]
    assert waits in sailplan("watch", name, "--once")[1]

    with verb("logs", name, "-f") as follower:
        assert follower.stderr is not None
        assert follower.stderr.readline() == f"{name}: queued, {waits}\n"
        code, out, _ = sailplan("cancel", name)
        assert (code, out.splitlines()) == (
            0,
            [
                f"cancelled train {job}, which waited",
                f"cancelled merge {merge}, which waited",
                f"`sailplan submit {shlex.quote(f'runs/{name}')}` goes on with the run",
            ],
        )
        told, said = follower.communicate(timeout=30)
    assert told == ""
    assert said.startswith(f"stopped: train {job} cancelled while it waited; `sailplan submit")
    assert asked.state(job) == asked.state(merge) == "CANCELLED"
    assert sailplan("cancel", name)[1].startswith("there is nothing to cancel: stopped: train")
    assert f"stopped  {name}: train {job} cancelled while it waited" in sailplan("runs")[1]
    asked.cancel_all()


def test_run_is_followed_over_a_requeue_until_it_is_finished(
    asked: Cluster, paths: RunPaths
) -> None:
    job = train(asked, paths, steps(paths, 25))
    merge = submit(asked, paths, "merge", "echo merging", after=job)
    with (
        verb("logs", str(paths.path), "--follow", "-n", "1000") as log,
        verb("watch", str(paths.path)) as watch,
    ):
        wait_for_step(paths, 3)
        asked.run("scancel", "--batch", "--signal=USR1", job)
        told, said = log.communicate(timeout=60)
        seen, _ = watch.communicate(timeout=30)
    numbers = [int(number) for number in re.findall(r"^step (\d+)$", told, re.MULTILINE)]
    assert numbers == list(range(1, 26))
    assert f"train {job} waits a moment before it starts again" in said
    assert said.splitlines()[-1] == "finished at step 25 of 25"
    assert f"queued, train {job} waits a moment before it starts again" in seen
    assert len(re.findall(r"^step \d+/25 ", seen, re.MULTILINE)) == 25
    assert seen.splitlines()[-1] == "finished at step 25 of 25"
    assert asked.job(job)["Restarts"] == "1"
    asked.wait_for(merge, "COMPLETED")
    assert sailplan("logs", str(paths.path), "--job", "merge")[1] == "merging\n"


def test_run_that_trains_saves_and_stops_when_it_is_cancelled(
    asked: Cluster, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    file = tiny_run(tmp_path, tiny_model("llama"), max_steps=100_000, save_steps=50_000)
    run = runs.submit(asked, file, "--then", "merge", output_dir=tmp_path / "run")
    paths, job, merge = run.paths, run.train, run.jobs["merge"]
    wait_for_step(paths, 2)
    (running,) = json.loads(sailplan("runs", ".", "--json")[1])
    assert (running["state"], running["jobs"][0]["nodes"]) == ("running", "node1")

    code, out, err = sailplan("cancel", "run", "--wait")

    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:3] == [
        f"the run is asked to save and to stop ({Path('run/STOP')})",
        f"train {job} then ends, and is not queued again",
        f"cancelled merge {merge}, which waited",
    ]
    assert re.match(r"stopped at step [\d,]+ of 100,000: ", lines[-1])
    assert lines[-1].endswith("; `sailplan submit run` goes on")
    one = look_at(paths.path)
    whole = quick_latest(paths.checkpoints())
    assert whole == paths.checkpoint(one.step or 0)
    record = asked.wait_for(job)
    assert (record["JobState"], record["ExitCode"], record["Restarts"]) == ("FAILED", "75:0", "0")
    assert not paths.stop_file.exists()
    told = sailplan("runs", ".")[1]
    assert f"merge {merge}  run: cancelled, since train ({job}) stopped: " in told


def test_run_is_ended_at_once_with_all_that_follows(asked: Cluster, paths: RunPaths) -> None:
    job = train(asked, paths, steps(paths, 1000))
    merge = submit(asked, paths, "merge", "true", after=job)
    wait_for_step(paths, 2)
    code, out, _ = sailplan("cancel", str(paths.path), "--now", "--wait")
    assert code == 0
    assert out.splitlines()[:2] == [
        f"cancelled train {job}, which was running",
        f"cancelled merge {merge}, which waited",
    ]
    assert asked.state(job) == asked.state(merge) == "CANCELLED"
    assert asked.job(job)["Restarts"] == "0"


def test_run_whose_job_dies_without_a_word_is_known_at_once(
    asked: Cluster, paths: RunPaths
) -> None:
    job = train(asked, paths, steps(paths, 1000))
    wait_for_step(paths, 2)
    (script,) = asked.processes("node1", "slurm_script")
    os.kill(script, signal.SIGKILL)
    asked.wait_for(job)
    one = look_at(paths.path)
    assert (one.state, one.is_over) == ("failed", True)
    assert one.why == f"train {job} failed: signal 9 has ended it"


def test_slurm_is_not_asked_where_no_run_has_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("squeue", "sacct", "scontrol"):
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f"#!/bin/bash\ntouch {shlex.quote(str(tmp_path / 'asked'))}\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "run.yaml").write_text("model_name_or_path: a/b\n")
    (run / "command.txt").write_text("accelerate launch\n")
    assert "one" in sailplan("runs", str(tmp_path / "runs"))[1]
    assert not (tmp_path / "asked").exists()
