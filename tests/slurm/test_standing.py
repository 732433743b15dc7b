"""How the jobs of a run stand, each in a line: by Slurm's word, by their own, and by inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sailplan.run.paths import RunPaths
from sailplan.slurm.jobs import Job, JobEnd, Kind, write_end, write_job
from sailplan.slurm.queue import Lookup, QueuedJob
from sailplan.slurm.standing import Chain, last_submitted, look_up_all, read_chain, standings
from tests.slurm.cluster import Cluster

NOW = 1_000_000.0
NO_SLURM = Lookup(trouble="there is no squeue on this machine")


def job(job_id: int, kind: Kind, after: int | None = None, submitted_at: float = 0.0) -> Job:
    """A job of a run."""
    log = f"/run/slurm/{kind}-{job_id}.log"
    script = f"/run/slurm/{kind}.sbatch"
    return Job(
        job_id=job_id, kind=kind, script=script, log=log, after=after, submitted_at=submitted_at
    )


CHAIN = (job(12, "train"), job(13, "merge", 12), job(14, "compare", 13))


def lines(*queued: dict[str, Any], **ends: JobEnd) -> list[str]:
    """How the chain stands by Slurm's answer and the jobs' own words, as `e12=JobEnd(…)`."""
    jobs = {one["job_id"]: QueuedJob(**one) for one in queued}
    chain = Chain(jobs=CHAIN, ends={int(name[1:]): end for name, end in ends.items()})
    return [one.line for one in standings(chain, Lookup(jobs=jobs), now=NOW)]


def slurm(job_id: int, state: str, reason: str = "", **values: Any) -> dict[str, Any]:
    return {"job_id": job_id, "state": state, "reason": reason, **values}


WAITING = (slurm(13, "PENDING", "Dependency"), slurm(14, "PENDING", "Dependency"))


@pytest.mark.parametrize(
    ("train", "line"),
    [
        (
            slurm(12, "RUNNING", nodes="node[1-2]", started_at=NOW - 300, restarts=2),
            "running on node[1-2] since 5 min, started again 2 times",
        ),
        (slurm(12, "COMPLETING", nodes="node1"), "is ending on node1"),
        (slurm(12, "CONFIGURING", nodes="node1"), "waits until its nodes are ready: node1"),
        (
            slurm(12, "PENDING", "Priority", started_at=NOW + 3 * 3600),
            "waits for jobs of a higher priority; Slurm expects it to start in 3.0 h",
        ),
        (
            slurm(12, "PENDING", "Priority", started_at=NOW + 365 * 86400),
            "waits for jobs of a higher priority",
        ),
        (
            slurm(12, "PENDING", "BeginTime", started_at=NOW + 120, restarts=1),
            "waits a moment before it starts again; Slurm expects it to start in 2 min "
            "(queued again 1 time)",
        ),
    ],
)
def test_chain_whose_training_is_not_over_waits_for_it(train: dict[str, Any], line: str) -> None:
    assert lines(train, *WAITING) == [
        f"train 12: {line}",
        "merge 13: waits for train (12)",
        "compare 14: waits for merge (13)",
    ]


def test_job_after_one_that_failed_is_cancelled_with_its_own_words() -> None:
    told = lines(
        slurm(12, "COMPLETED", exit_code=0),
        slurm(13, "FAILED", "NonZeroExitCode", exit_code=9),
        slurm(14, "CANCELLED", "DependencyNeverSatisfied"),
        e13=JobEnd(exit_code=9, why="checkpoint-8 is not whole"),
    )
    assert told == [
        "train 12: finished",
        "merge 13: failed: checkpoint-8 is not whole",
        "compare 14: cancelled, since merge (13) failed: checkpoint-8 is not whole",
    ]


def test_jobs_that_slurm_has_forgotten_stand_as_they_said_and_as_follows() -> None:
    assert lines(e12=JobEnd(exit_code=0), e13=JobEnd(exit_code=9, why="no space is left")) == [
        "train 12: finished",
        "merge 13: failed: no space is left",
        "compare 14: cancelled, since merge (13) failed: no space is left",
    ]
    assert lines(e12=JobEnd(exit_code=8, why="the loss is NaN")) == [
        "train 12: failed: the loss is NaN",
        "merge 13: cancelled, since train (12) failed: the loss is NaN",
        "compare 14: cancelled, since merge (13) was cancelled",
    ]
    assert lines(e12=JobEnd(exit_code=0))[1] == (
        "merge 13: Slurm does not know it any more, and it has left no word of its end"
    )


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (slurm(12, "TIMEOUT", time_limit="8:00:00"), "its time of 8:00:00 was over"),
        (slurm(12, "NODE_FAIL", nodes="node[1-2]"), "a node has failed (node[1-2])"),
        (slurm(12, "PREEMPTED"), "a job of a higher priority has taken its nodes"),
        (slurm(12, "OUT_OF_MEMORY", nodes="node1"), "it took more memory than it had asked for"),
        (slurm(12, "FAILED", "NonZeroExitCode", exit_code=3), "exit code 3"),
        (slurm(12, "FAILED", "JobLaunchFailure", signal=9), "signal 9 has ended it"),
    ],
)
def test_job_that_slurm_has_ended_says_why(train: dict[str, Any], words: str) -> None:
    assert lines(train)[0].startswith(f"train 12: failed: {words}")


def test_cancelled_job_says_whether_it_ran_and_by_whom() -> None:
    ran = slurm(12, "CANCELLED", nodes="node1", cancelled_by="1000")
    left = slurm(13, "CANCELLED", "Dependency")
    assert lines(ran, left)[:2] == [
        "train 12: cancelled by user 1000",
        "merge 13: cancelled, since train (12) was cancelled",
    ]
    assert lines(slurm(12, "CANCELLED", "Priority"))[0] == "train 12: cancelled while it waited"


def test_stopped_training_is_no_failure() -> None:
    told = lines(
        slurm(12, "FAILED", exit_code=75),
        slurm(13, "CANCELLED", "DependencyNeverSatisfied"),
        e12=JobEnd(exit_code=75, why="as asked (the stop file)"),
    )
    assert told[:2] == [
        "train 12: stopped: as asked (the stop file)",
        "merge 13: cancelled, since train (12) stopped: as asked (the stop file)",
    ]
    assert lines(slurm(12, "FAILED", exit_code=75))[0] == "train 12: stopped"


def test_requeued_job_waits_whatever_its_last_start_has_said() -> None:
    told = lines(slurm(12, "PENDING", "BeginTime", restarts=1), e12=JobEnd(exit_code=1, why="x"))
    assert told[0] == "train 12: waits a moment before it starts again (queued again 1 time)"


def test_without_slurm_the_jobs_own_words_count() -> None:
    chain = Chain(jobs=CHAIN, ends={12: JobEnd(exit_code=0)})
    found = standings(chain, NO_SLURM, now=NOW)
    assert [one.state for one in found] == ["finished", "unknown", "unknown"]
    unknown = "how it stands is not known: there is no squeue on this machine"
    assert found[1].line == f"merge 13: {unknown}"


def test_jobs_of_an_earlier_chain_are_left_out() -> None:
    old = [job(12, "train"), job(13, "merge", 12, 1.0), job(14, "compare", 13, 2.0)]
    again = job(20, "train", submitted_at=10.0)
    assert last_submitted([*old, again]) == [again]
    merge = job(21, "merge", 20, 11.0)
    assert last_submitted([*old, again, merge]) == [again, merge]
    alone = job(22, "compare", None, 12.0)
    assert last_submitted([*old, again, alone]) == [again, alone]


def test_jobs_that_have_succeeded_are_not_asked_for() -> None:
    chain = Chain(jobs=CHAIN, ends={12: JobEnd(exit_code=0), 13: JobEnd(exit_code=9)})
    assert (chain.asked, chain.silent) == ({13, 14}, {14})


def test_real_chain_whose_link_fails_is_told_to_its_end(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    paths = RunPaths(tmp_path / "run")
    after = ("--kill-on-invalid-dep=yes",)
    train = cluster.submit("sleep 100", "--nodes=2")
    cluster.wait_for(train, "RUNNING")
    merge = cluster.submit("exit 9", f"--dependency=afterok:{train}", *after)
    compare = cluster.submit("true", f"--dependency=afterok:{merge}", *after)
    write_job(paths, job(train, "train"))
    write_job(paths, job(merge, "merge", train))
    write_job(paths, job(compare, "compare", merge))

    def told() -> list[str]:
        chain = read_chain(paths)
        return [one.words for one in standings(chain, look_up_all([chain]))]

    running, *others = told()
    assert running.startswith("running on node[1-2] since ")
    assert others == [f"waits for train ({train})", f"waits for merge ({merge})"]

    cluster.run("scontrol", "update", f"JobId={merge}", "Dependency=")  # as if training were over
    cluster.wait_for(merge, "FAILED")
    write_end(paths, merge, JobEnd(exit_code=9, why="no space is left on the device"))
    cluster.wait_for(compare, "CANCELLED")
    cluster.run("scancel", train)
    cluster.wait_for(train, "CANCELLED")
    assert told() == [
        "cancelled",
        "failed: no space is left on the device",
        f"cancelled, since merge ({merge}) failed: no space is left on the device",
    ]
