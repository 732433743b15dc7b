"""The cluster that the Slurm tests stand on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.cluster.machine import polling
from tests.slurm.cluster.records import parse_record

BOTH_NODES = ("--nodes=2", "--ntasks-per-node=1", "--gres=gpu:8")


def holds(condition: Callable[[], object], timeout_s: float = 60) -> bool:
    """Whether a condition comes true in time."""
    return any(condition() for _ in polling(timeout_s))


def traces_of(directory: Path) -> dict[str, list[str]]:
    """What there is of a cluster on this machine: processes, interfaces, mounts, files, groups."""
    name = directory.name
    processes = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            processes += [str(path)] * (name.encode() in path.read_bytes())
        except OSError:
            continue
    mounts = Path("/proc/mounts").read_text().splitlines()
    interface = Path("/sys/class/net") / name.replace("sailplan-slurm-", "sail-")
    groups = Path("/sys/fs/cgroup").glob(f"freezer/{name}*")
    return {
        "processes": processes,
        "interfaces": [str(interface)] * interface.exists(),
        "mounts": [line for line in mounts if name in line],
        "files": [str(directory)] * directory.exists(),
        "groups": list(map(str, groups)),
    }


def test_cluster_stopped_at_work_leaves_nothing(fresh_cluster: Callable[..., Cluster]) -> None:
    start = time.monotonic()
    cluster = fresh_cluster(2)
    print(f"two nodes idle after {time.monotonic() - start:.2f} s")
    job = cluster.submit("trap '' TERM; srun sleep 300", *BOTH_NODES)
    cluster.wait_for(job, "RUNNING")
    assert holds(lambda: cluster.processes("node2", "sleep", "300"))
    assert traces_of(cluster.directory)["interfaces"]

    start = time.monotonic()
    cluster.stop()
    print(f"nothing left after {time.monotonic() - start:.2f} s more")
    assert not any(traces_of(cluster.directory).values()), traces_of(cluster.directory)


def test_cluster_whose_owner_is_killed_leaves_nothing(tmp_path: Path) -> None:
    told = tmp_path / "told"
    program = (
        "import time, pathlib, sys\n"
        "from tests.slurm.cluster import Cluster\n"
        "cluster = Cluster(2)\n"
        "job = cluster.submit('srun sleep 301', '--nodes=2')\n"
        "cluster.wait_for(job, 'RUNNING')\n"
        "while not cluster.processes('node1', 'sleep', '301'):\n"
        "    time.sleep(0.05)\n"
        "pathlib.Path(sys.argv[1]).write_text(str(cluster.directory))\n"
        "time.sleep(300)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(told)])
    try:
        assert holds(told.exists, 60)
        directory = Path(told.read_text())
        assert all(traces_of(directory)[kind] for kind in ("processes", "interfaces", "files"))
    finally:
        owner.kill()
        owner.wait()
    assert holds(lambda: not any(traces_of(directory).values())), traces_of(directory)


def test_jobs_of_two_clusters_side_by_side_do_not_meet(
    cluster: Cluster, fresh_cluster: Callable[..., Cluster]
) -> None:
    other = fresh_cluster(2)
    # The same job id on both: what tells them apart is only the cluster.
    jobs = {here: here.submit("srun sleep 302", "--hold", *BOTH_NODES) for here in (cluster, other)}
    while jobs[other] < jobs[cluster]:
        jobs[other] = other.submit("srun sleep 302", "--hold", *BOTH_NODES)
    for here, job in jobs.items():
        here.run("scontrol", "release", job)
        here.wait_for(job, "RUNNING")
        assert holds(lambda here=here: here.processes("node2", "sleep", "302"))

    other.run("scancel", jobs[other])
    other.wait_for(jobs[other], "CANCELLED")
    assert holds(lambda: not other.processes("node2", "sleep", "302"))
    assert cluster.processes("node2", "sleep", "302")
    cluster.cancel_all()


def test_job_on_two_nodes_has_a_rank_name_memory_and_disk_per_node(cluster: Cluster) -> None:
    job = cluster.submit(
        f"srun bash -c 'touch /dev/shm/of-$(hostname) {cluster.local}/of-$(hostname);"
        f" echo $SLURM_NODEID $(hostname) $(cd /dev/shm && ls) $(ls {cluster.local})'",
        *BOTH_NODES,
    )
    cluster.wait_for(job, "COMPLETED")
    assert sorted(cluster.log(job).splitlines()) == [
        "0 node1 of-node1 of-node1",
        "1 node2 of-node2 of-node2",
    ]


@pytest.mark.parametrize(
    ("asked", "visible"),
    [
        (["--gres=gpu:8"], "0,1,2,3,4,5,6,7"),
        (["--gpus-per-node=h100:8"], "0,1,2,3,4,5,6,7"),
        (["--gpus-per-task=4", "--ntasks=2"], "0,1,2,3"),
    ],
)
def test_gpus_asked_for_in_each_style_are_given(
    cluster: Cluster, asked: list[str], visible: str
) -> None:
    script = "srun bash -c 'echo $CUDA_VISIBLE_DEVICES'"
    job = cluster.submit(script, "--nodes=2", "--ntasks-per-node=1", *asked)
    cluster.wait_for(job, "COMPLETED")
    assert cluster.log(job).split() == [visible, visible]


def test_user_who_is_not_root_submits_runs_python_and_cancels(cluster: Cluster) -> None:
    job = cluster.submit("id -un; srun python -c 'import sailplan'; sleep 303", user="nobody")
    assert cluster.job(job)["UserId"] == "nobody(65534)"
    assert holds(lambda: cluster.processes("node1", "sleep", "303"))
    assert cluster.log(job) == "nobody\n"
    assert str(job) in cluster.run("squeue", "-h", "-u", "nobody", user="nobody")
    cluster.run("scancel", job, user="nobody")
    cluster.wait_for(job, "CANCELLED")


def test_signal_to_the_batch_script_reaches_its_trap(cluster: Cluster) -> None:
    job = cluster.submit("trap 'echo caught; exit' USR1; echo ready; srun sleep 304 & wait")
    assert holds(lambda: "ready" in cluster.log(job))
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait_for(job, "COMPLETED")
    assert "caught" in cluster.log(job)


def test_job_of_low_priority_gives_way_and_comes_back(cluster: Cluster) -> None:
    low = cluster.submit(
        "echo run ${SLURM_RESTART_COUNT:-0}; [ ${SLURM_RESTART_COUNT:-0} = 1 ] || srun sleep 305",
        *("--partition=low", "--requeue", "--open-mode=append"),
        *BOTH_NODES,
    )
    assert holds(lambda: cluster.processes("node2", "sleep", "305"))
    high = cluster.submit("true", *BOTH_NODES)
    cluster.wait_for(high, "COMPLETED")
    record = cluster.wait_for(low, "COMPLETED")
    assert record["Restarts"] == "1"
    assert [line for line in cluster.log(low).splitlines() if line.startswith("run")] == [
        "run 0",
        "run 1",
    ]


def test_job_that_depends_on_a_failed_one_is_cancelled(cluster: Cluster) -> None:
    failing = cluster.submit("exit 3", "--hold")
    after = cluster.submit("true", f"--dependency=afterok:{failing}", "--kill-on-invalid-dep=yes")
    assert cluster.job(after)["Dependency"].startswith(f"afterok:{failing}")
    cluster.run("scontrol", "release", failing)
    assert cluster.wait_for(failing, "FAILED")["ExitCode"] == "3:0"
    cluster.wait_for(after, "CANCELLED")


def test_job_of_a_node_that_crashes_is_queued_again_and_runs_when_it_is_back(
    fresh_cluster: Callable[..., Cluster],
) -> None:
    # Found out sooner than on a real cluster, which has many nodes to ask.
    cluster = fresh_cluster(extra="SlurmdTimeout=3\nMessageTimeout=3")
    job = cluster.submit(
        "echo run ${SLURM_RESTART_COUNT:-0}; [ ${SLURM_RESTART_COUNT:-0} = 1 ] || srun sleep 306",
        *("--requeue", "--open-mode=append"),
        *BOTH_NODES,
    )
    assert holds(lambda: cluster.processes("node2", "sleep", "306"))
    cluster.crash("node2")
    assert not cluster.processes("node2")
    cluster.wait_for(job, "PENDING", timeout_s=60)
    cluster.revive("node2")
    record = cluster.wait_for(job, "COMPLETED")
    assert (record["Restarts"], record["NodeList"]) == ("1", "node[1-2]")
    assert "NODE FAILURE" in cluster.log(job)


@pytest.mark.slow
def test_job_of_a_cluster_with_accounting_is_found_by_sacct(
    fresh_cluster: Callable[..., Cluster],
) -> None:
    cluster = fresh_cluster(accounting=True)
    job = cluster.submit("srun false", *BOTH_NODES, user="nobody")
    cluster.wait_for(job, "FAILED")
    asked = ("sacct", "-n", "-P", "-X", "-o", "JobIDRaw,State,ExitCode,AllocTRES", "-j", str(job))
    assert holds(lambda: "|FAILED|" in cluster.run(*asked, user="nobody"))
    found = cluster.run(*asked).strip().split("|")
    assert found[:3] == [str(job), "FAILED", "1:0"]
    assert "gres/gpu=16" in found[3]


def test_record_of_a_job_with_spaces_and_newlines_is_read_whole() -> None:
    record = parse_record(
        "JobId=7 JobName=two words\nand a line UserId=root(0) CPUs/Task=1 "
        "ReqB:S:C:T=0:0:*:* WorkDir=/a b/c=d StdOut=/a b/7.log Power= \n"
    )
    assert record == {
        "JobId": "7",
        "JobName": "two words\nand a line",
        "UserId": "root(0)",
        "CPUs/Task": "1",
        "ReqB:S:C:T": "0:0:*:*",
        "WorkDir": "/a b/c=d",
        "StdOut": "/a b/7.log",
        "Power": "",
    }
