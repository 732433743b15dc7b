"""What `sailplan submit` takes and refuses; hostile names and secrets; chains that break."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sailplan.run.metrics import read_metrics
from sailplan.run.paths import RunPaths
from sailplan.slurm.jobs import jobs_of
from tests.slurm.cluster import Cluster
from tests.slurm.runs import LIMIT_S, sailplan, submit, tiny_run
from tests.support.fake_hub import serve
from tests.support.rows import chat_rows

HOSTILE = 'it\'s "a" $(touch pwned) `touch pwned`; touch pwned #%j \\ \nand\tmore & <é>'
SECRET = "hf_" + "q7Zx" * 9


def files_below(folder: Path) -> Iterator[Path]:
    """Yields all files in a folder and below it."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path


@pytest.mark.timeout(2 * LIMIT_S)
def test_hostile_names_come_back_unharmed_and_secrets_stay_out(
    cluster: Cluster, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    home = tmp_path / HOSTILE
    home.mkdir()
    model = shutil.copytree(tiny_model("llama"), home / f"model {HOSTILE}")
    note = {"NOTE": "$(touch pwned); `touch pwned` 'x' \"y\" \\"}
    values = {"run_name": HOSTILE, "env": {"ANY_API_KEY": SECRET}, "slurm": {"environment": note}}
    file = tiny_run(home, model, max_steps=2, **values)
    run = submit(
        cluster,
        file,
        *("--output_dir", str(home / "run" / HOSTILE)),
        *("--system_prompt", HOSTILE),
        output_dir=home / "run" / HOSTILE,
        environment={"HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET},
        cwd=home,
    )
    run.wait("COMPLETED")
    assert [record["step"] for record in read_metrics(run.paths.metrics_file) if "loss" in record]
    written = json.loads(run.paths.state_file.read_text())
    assert written["state"] == "finished"
    assert not list(tmp_path.rglob("pwned"))
    assert not Path("pwned").exists()
    for path in [*files_below(run.paths.path), *files_below(cluster.directory / "log")]:
        assert SECRET.encode() not in path.read_bytes(), path


def test_secret_of_the_run_file_must_be_in_the_environment_of_sbatch(
    cluster: Cluster, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tiny_run(tmp_path, tiny_model("llama"), env={"ANY_API_KEY": SECRET})
    shown = sailplan(cluster, "submit", file, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert SECRET not in shown.stdout + shown.stderr
    assert "ANY_API_KEY" in shown.stdout
    assert not (tmp_path / "run").exists()
    job = cluster.submit(shown.stdout[shown.stdout.index("#!/bin/bash") :])
    record = cluster.wait_for(job, "FAILED", timeout_s=LIMIT_S)
    assert record["ExitCode"] != "0:0"
    assert "ANY_API_KEY: must be in the environment of sbatch" in cluster.log(job)


@pytest.fixture
def finished_run(trained_run: Path, tmp_path: Path) -> RunPaths:
    """A finished run, at another place than where it was trained."""
    moved = Path(shutil.copytree(trained_run, tmp_path / "run"))
    for name in ("run.yaml", "train.yaml"):
        text = (moved / name).read_text().replace(str(trained_run), str(moved))
        (moved / name).write_text(text)
    return RunPaths(moved)


def test_chain_of_a_finished_run_queues_the_rest_and_is_cancelled_where_a_link_fails(
    cluster: Cluster, finished_run: RunPaths
) -> None:
    (finished_run.path / "merged").write_text("no folder, so that nothing can be merged into it")
    run = submit(
        cluster,
        finished_run.path,
        *("--then", "merge,compare", "--slurm.mem", "4G"),
        output_dir=finished_run.path,
    )
    assert list(run.jobs) == ["merge", "compare"]
    assert [(job.kind, job.after) for job in jobs_of(run.paths)] == [
        ("merge", None),
        ("compare", run.jobs["merge"]),
    ]
    run.wait("FAILED", kind="merge")
    run.wait("CANCELLED", kind="compare")
    told = " ".join(sailplan(cluster, "runs", finished_run.path).stdout.split())
    assert f"compare {run.jobs['compare']}" in told
    assert f"merge ({run.jobs['merge']}) failed" in told


def test_comparison_that_fails_says_why(cluster: Cluster, finished_run: RunPaths) -> None:
    (finished_run.path / "model.safetensors").write_bytes(b"no weights")
    flags = ("--then", "compare", "--slurm.mem", "4G")
    run = submit(cluster, finished_run.path, *flags, output_dir=finished_run.path)
    run.wait("FAILED", kind="compare")
    told = sailplan(cluster, "runs", finished_run.path).stdout
    assert f"compare {run.jobs['compare']}" in told
    assert "model.safetensors" in told


def test_finished_run_is_not_trained_again(cluster: Cluster, finished_run: RunPaths) -> None:
    before = {path: path.stat().st_mtime_ns for path in files_below(finished_run.path)}
    done = sailplan(cluster, "submit", finished_run.path)
    assert (done.returncode, cluster.job_ids()) == (0, [])
    assert "the run is finished: 12 of 12 steps are done" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in files_below(finished_run.path)} == before


def test_job_of_a_finished_run_that_is_queued_by_hand_ends_at_once(
    cluster: Cluster, finished_run: RunPaths
) -> None:
    flags = ("--max_steps", "99", "--slurm.mem", "4G", "--dry-run")
    shown = sailplan(cluster, "submit", finished_run.path, *flags).stdout
    job = cluster.submit(shown[shown.index("#!/bin/bash") :].split("\n# /", 1)[0])
    cluster.wait_for(job, "COMPLETED", timeout_s=LIMIT_S)
    assert [one.job_id for one in jobs_of(finished_run)] == [job]
    assert "srun" not in "".join(path.name for path in finished_run.logs.iterdir())


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--slurm.partition", "nowhere"), 11, "Slurm would not take the train job.*partition"),
        (("--slurm.time", "soon"), 11, "Slurm would not take the train job.*time"),
        (
            ("--nodes", "4", "--global_batch_size", "8"),
            11,
            "Slurm would not take the train job.*[Nn]ode",
        ),
        (("--then", "merge,dance"), 2, "--then merge,dance; allowed: merge, compare"),
        (("--cluster", "atlantis"), 2, "no cluster profile 'atlantis'"),
        (("--launch.cpu", "false", "--launch.strategy", "auto"), 5, "says launch.gpu"),
        (("--model_name_or_path", "./nothing"), 3, "./nothing"),
    ],
)
def test_what_cannot_go_right_is_refused_and_nothing_is_left(
    cluster: Cluster,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    flags: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    file = tiny_run(tmp_path, tiny_model("llama"))
    done = sailplan(cluster, "submit", file, *flags)
    assert done.returncode == code, done.stdout + done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert done.stderr.startswith("error: ")
    assert cluster.job_ids() == []
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_run_in_the_queue_is_not_submitted_twice(
    cluster: Cluster, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tiny_run(tmp_path, tiny_model("llama"), slurm={"directives": ["--hold"]})
    run = submit(cluster, file, output_dir=tmp_path / "run")
    again = sailplan(cluster, "submit", file)
    assert again.returncode == 11
    assert f"job {run.train} of {tmp_path / 'run'} is PENDING" in again.stderr
    cluster.run("scancel", str(run.train))
    run.wait("CANCELLED")


def test_train_on_several_machines_says_submit(tmp_path: Path, cluster: Cluster) -> None:
    file = tiny_run(tmp_path, tmp_path, launch={"nodes": 2})
    done = sailplan(cluster, "train", file)
    assert done.returncode == 6
    assert "sailplan submit" in done.stderr


def test_all_of_it_works_for_a_user_who_is_not_root(
    cluster: Cluster, tiny_model: Callable[[str], Path]
) -> None:
    home = cluster.home("nobody") / "work"
    home.mkdir(exist_ok=True)
    model = shutil.copytree(tiny_model("llama"), home / "model", dirs_exist_ok=True)
    file = tiny_run(home, model, max_steps=2)
    for path in [home, *home.rglob("*")]:
        shutil.chown(path, "nobody", "nogroup")
    home.chmod(0o755)
    said = cluster.run("sailplan", "submit", file, user="nobody", timeout_s=LIMIT_S)
    job = int(said.split("job ")[1].split()[0])
    cluster.wait_for(job, "COMPLETED", timeout_s=LIMIT_S)
    state = json.loads((home / "run" / "state.json").read_text())
    assert state["state"] == "finished"


def test_model_and_data_of_the_hub_come_before_the_job_whose_nodes_have_no_network(
    cluster: Cluster, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    with serve() as hub:
        commit = hub.commit("model", "owner/tiny", tiny_model("llama"))
        rows = chat_rows(tmp_path / "rows", 6, images=False).read_bytes()
        hub.commit("dataset", "owner/chats", {"train.jsonl": rows})
        names = {"model_name_or_path": "owner/tiny", "dataset_name": "owner/chats"}
        file = tiny_run(tmp_path, tmp_path, max_steps=2, **names)
        run = submit(
            cluster,
            file,
            *("--slurm.shared_cache", str(tmp_path / "cache")),
            output_dir=tmp_path / "run",
            environment={"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"},
        )
        asked = len(hub.requests)
        assert f"owner/tiny at {commit}" in run.said
        run.wait("COMPLETED")
        assert len(hub.requests) == asked > 0
    assert f"HF_HOME={tmp_path / 'cache'}" in run.paths.job_script("train").read_text()
    assert json.loads(run.paths.state_file.read_text())["state"] == "finished"
