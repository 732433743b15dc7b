"""Job scripts on a real Slurm: taken as they are, from a user, whatever names and paths hold."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from sailplan.slurm.script import JobRequest, render
from tests.slurm.asked import asked
from tests.slurm.cluster import Cluster
from tests.slurm.cluster.cluster import polling

USER = "nobody"

STAND_IN = """\
#!/bin/bash
# Stands where the user's Python would: notes what it is called with, and answers as sailplan does.
{
    printf '%s\\0' "${SLURM_NODEID-}" "${SLURM_RESTART_COUNT:-0}" "${CUDA_VISIBLE_DEVICES-}" "$@"
    printf '\\0\\n'
} >>"$NOTES/${SLURM_NODEID-}-$$"
case "$*" in
    *'sailplan job begin train'*) echo 1 ;;
    *'sailplan job end train'*) . "$NOTES/answer" ;;
    *'sailplan.launcher.accelerate launch'*) . "$NOTES/launch" ;;
esac
"""


class Desk:
    """A user's folder on the disk that all nodes see, and a stand-in for the Python there."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.folder = cluster.home(USER) / name
        self.notes = self.folder / "notes"
        self.notes.mkdir(parents=True)
        self.python = self.folder / "bin" / "python"
        self.python.parent.mkdir()
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)
        self.answers("echo finished")
        self.launches(":")

    def answers(self, script: str) -> None:
        """Says how the end of a launch is answered."""
        (self.notes / "answer").write_text(script)

    def launches(self, script: str) -> None:
        """Says what a launcher does."""
        (self.notes / "launch").write_text(script)

    def submit(self, request: JobRequest, *options: str) -> int:
        """Submits a job's script as the user."""
        request.paths.slurm.mkdir(parents=True, exist_ok=True)
        script = request.paths.job_script(request.kind)
        script.write_text(render(request))
        for path in (self.folder, *self.folder.rglob("*")):
            shutil.chown(path, USER)
        answer = self.cluster.run(
            *("sbatch", "--parsable", *options, script),
            user=USER,
            environment={"NOTES": str(self.notes)},
        )
        return int(answer)

    def calls(self) -> list[list[str]]:
        """Each call of the stand-in: node, number of restarts, GPUs, then the arguments."""
        files = sorted(self.notes.glob("*-*"), key=lambda path: path.stat().st_mtime_ns)
        texts = [path.read_text() for path in files]
        return [call.split("\0") for text in texts for call in text.split("\0\0\n")[:-1]]

    def request(self, *names: str, **values: Any) -> JobRequest:
        """A job with its run directory at this desk."""
        settings = {"partition": "gpu", "time": "5", **values.pop("settings", {})}
        return asked(
            run=self.folder.joinpath("runs", *names),
            working_directory=self.folder,
            python=self.python,
            settings=settings,
            **values,
        )


@pytest.fixture
def desk(cluster: Cluster, request: pytest.FixtureRequest) -> Desk:
    return Desk(cluster, f"{request.node.originalname}-{id(request)}")


STYLES = {
    "gres": {"gpu_request": "gres"},
    "gres-typed": {"gpu_request": "gres", "gpu_type": "h100"},
    "gpus_per_node": {"gpu_request": "gpus_per_node", "gpu_type": "h100"},
    "gpus_per_task": {"gpu_request": "gpus_per_task"},
    "own": {"gres": "gpu:h100:8"},
}


@pytest.mark.parametrize("style", STYLES)
def test_gpus_of_two_nodes_are_given_as_they_are_asked_for(desk: Desk, style: str) -> None:
    sizes = {"cpus_per_gpu": 2, "mem_per_gpu": "10G"}
    request = desk.request("run", nodes=2, settings={**STYLES[style], **sizes})

    job = desk.submit(request)
    record = desk.cluster.wait_for(job, "COMPLETED")

    assert record["TRES"].startswith("cpu=32,mem=160G,node=2")
    assert record["UserId"].startswith(USER)
    launches = sorted(call for call in desk.calls() if "launch" in call)
    assert [call[:3] for call in launches] == [
        [node, "0", "0,1,2,3,4,5,6,7"] for node in ("0", "1")
    ]
    port = str(20000 + job % 20000)
    for node, call in enumerate(launches):
        where = ["--main_process_port", port, "--main_process_ip", "node1"]
        assert call[6:12] == [*where, "--machine_rank", str(node)]
        assert call[12:] == list(request.command[1:])


@pytest.mark.parametrize("kind", ["merge", "compare"])
def test_stage_is_given_what_it_asks_for(desk: Desk, kind: str) -> None:
    sizes = {"cpus_per_gpu": 2, "mem_per_gpu": "10G", "gpu_type": "h100"}
    request = desk.request("run", kind=kind, settings=sizes)

    record = desk.cluster.wait_for(desk.submit(request), "COMPLETED")

    assert record["TRES"].startswith("cpu=2,mem=10G,node=1")
    begin, work, end = [call[3:] for call in desk.calls()]
    assert work == list(request.command[1:])
    assert [begin[3], end[3], end[-1]] == ["begin", "end", "0"]


FOLDERS = ("a b", "it's", 'a"b', "$(touch PWNED)", "`touch PWNED`", "; touch PWNED", "#", "100% %j")
"""Names of folders, one in another."""

WORDS = (
    *FOLDERS,
    "a\nb",
    "-rf",
    "back\\slash",
    "ünïcode ☃",
    "*",
    "~",
    "$HOME",
    "'; touch PWNED; '",
)


@pytest.mark.parametrize("name", ["plain", "a\nb", "back\\slash"])
def test_names_and_values_that_want_to_be_commands_are_unharmed(desk: Desk, name: str) -> None:
    command = ("launch", "--config_file", *WORDS)
    settings = {
        "directives": [f"--comment={' '.join(FOLDERS)}"],
        "local_cache": f"{desk.folder}/$SLURM_NODEID/$(touch PWNED)",
    }
    request = desk.request(
        *(*FOLDERS, name), nodes=2, command=command, name="; touch PWNED", settings=settings
    )
    desk.launches('echo "node $SLURM_NODEID: $TRITON_CACHE_DIR"')

    job = desk.submit(request)
    record = desk.cluster.wait_for(job, "COMPLETED")

    assert record["Comment"].strip() == " ".join(FOLDERS)
    assert record["JobName"] == "__touch_PWNED"
    launches = sorted(call for call in desk.calls() if "launch" in call)
    assert [call[12:] for call in launches] == [list(command[1:])] * 2
    log = request.paths.job_log("train", job).read_text()
    for node in range(2):
        assert f"node {node}: {desk.folder}/{node}/$(touch PWNED)/triton\n" in log
    assert not list(desk.folder.rglob("PWNED"))


def test_job_that_is_asked_to_stop_is_queued_again_and_its_log_goes_on(desk: Desk) -> None:
    desk.answers('[ "${SLURM_RESTART_COUNT:-0}" = 0 ] && echo requeue || echo finished')
    request = desk.request("run")
    stop = request.paths.stop_file
    desk.launches(f"echo begun; until [ -e {stop} ]; do sleep 0.1; done; exit 3")
    job = desk.submit(request)
    until(lambda: any("launch" in call for call in desk.calls()))

    desk.cluster.run("scancel", "--batch", "--signal=USR1", str(job))
    record = desk.cluster.wait_for(job, "COMPLETED")

    assert record["Restarts"] == "1"
    first, second = (call for call in desk.calls() if "end" in call)
    assert (first[1], first[-2:]) == ("0", ["3", "yes"])
    assert (second[1], second[-2:]) == ("1", ["3", ""])
    assert request.paths.job_log("train", job).read_text().count("begun") == 2


def test_job_that_is_cancelled_does_not_come_back(desk: Desk) -> None:
    desk.answers("echo requeue")
    desk.launches("exec sleep 60")
    job = desk.submit(desk.request("run"))
    until(lambda: any("launch" in call for call in desk.calls()))

    desk.cluster.run("scancel", str(job))
    until(lambda: job not in desk.cluster.job_ids())

    assert [call[-1] for call in desk.calls() if "end" in call] == ["yes"]
    assert desk.cluster.job(job)["JobState"] == "CANCELLED"


def test_launch_that_is_to_be_made_again_is_made_in_the_same_job(desk: Desk) -> None:
    desk.answers('[ -e "$NOTES/once" ] && echo finished || echo again; touch "$NOTES/once"')
    job = desk.submit(desk.request("run"))

    assert desk.cluster.wait_for(job, "COMPLETED")["Restarts"] == "0"
    assert len([call for call in desk.calls() if "launch" in call]) == 2


def until(true: Callable[[], object]) -> None:
    """Waits until something is so."""
    for _ in polling(60):
        if true():
            return
    raise AssertionError("it takes too long")
