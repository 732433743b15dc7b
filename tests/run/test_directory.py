"""A run's directory is claimed by one run, or not at all."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from sailplan.errors import OutputError
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory


def a_run(output_dir: Path, *flags: str) -> Run:
    return Run.from_flags(
        [
            *("--model_name_or_path", "a/model", "--dataset_name", "a/data"),
            *("--output_dir", str(output_dir), *flags),
        ]
    )


def claim(output_dir: Path, *flags: str) -> RunDirectory:
    run = a_run(output_dir, *flags)
    directory = RunDirectory.of(run)
    directory.claim(run)
    return directory


def test_claim_writes_what_can_be_launched_again(tmp_path):
    directory = claim(tmp_path / "runs" / "one", "--seed", "7")

    assert sorted(file.name for file in directory.path.iterdir()) == ["run.yaml", "train.yaml"]
    assert Run.from_file(directory.run_file) == a_run(directory.path, "--seed", "7")
    assert Run.from_flags(["--config", str(directory.train_file)]).get("seed") == 7


def test_directory_without_output_dir_is_transformers_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert RunDirectory.of(Run.from_flags([])).path == tmp_path / "trainer_output"


def test_claim_by_the_same_run_again_goes_on(tmp_path):
    claim(tmp_path / "out")
    (tmp_path / "out" / "checkpoint-10").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")

    directory = claim(tmp_path / "out", "--learning_rate", "1e-3", "--launch.gpus_per_node", "2")

    assert Run.from_file(directory.run_file).get("learning_rate") == 1e-3
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("", "--model_name_or_path b/model", "model_name_or_path is a/model there, b/model here"),
        ("", "--model_revision v2", "model_revision is main there, v2 here"),
        ("", "--dataset_name b/data", "dataset_name is a/data there, b/data here"),
        ("", "--datasets x y", "datasets is"),
        ("", "--use_peft", "use_peft is False there, True here"),
        ("--use_peft", "--use_peft --load_in_4bit", "load_in_4bit is"),
        ("--use_peft", "--use_peft --lora_r 8", "lora_r is 16 there, 8 here"),
        ("--use_peft", "--use_peft --lora_target_modules q_proj", "lora_target_modules is None"),
    ],
)
def test_claim_of_another_runs_directory_is_refused(tmp_path, first, second, name):
    directory = claim(tmp_path / "out", *first.split())
    before = directory.run_file.read_text(), directory.train_file.read_text()

    with pytest.raises(OutputError) as error:
        claim(tmp_path / "out", *second.split())

    assert f"holds another run: {name}" in str(error.value)
    assert "choose another output_dir" in str(error.value)
    assert "\n" not in str(error.value)
    assert (directory.run_file.read_text(), directory.train_file.read_text()) == before


def test_claim_with_overwrite_output_dir_still_deletes_nothing(tmp_path):
    claim(tmp_path / "out")
    with pytest.raises(OutputError, match="another run"):
        claim(tmp_path / "out", "--model_name_or_path", "b/model", "--overwrite_output_dir")


def test_claim_of_a_relative_and_an_absolute_path_is_the_same_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data.json").touch()
    claim(Path("out"), "--dataset_name", "data.json")
    claim(tmp_path / "out", "--dataset_name", str(tmp_path / "data.json"))


@pytest.mark.parametrize("trace", ["checkpoint-10/", "config.json", "adapter_config.json"])
def test_claim_of_a_foreign_runs_directory_is_refused(tmp_path, trace):
    out = tmp_path / "out"
    out.mkdir()
    (out / trace).mkdir() if trace.endswith("/") else (out / trace).touch()

    with pytest.raises(OutputError, match=rf"holds {trace.rstrip('/')}, but no run\.yaml"):
        claim(out)

    assert [file.name for file in out.iterdir()] == [trace.rstrip("/")]


def test_claim_of_a_foreign_run_that_is_resumed_is_allowed(tmp_path):
    (tmp_path / "out" / "checkpoint-10").mkdir(parents=True)
    claim(tmp_path / "out", "--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-10"))


def test_claim_of_a_directory_with_other_files_is_allowed(tmp_path):
    (tmp_path / "README").touch()
    assert claim(tmp_path).run_file.is_file()


def test_claim_of_a_broken_run_file_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: [\n")
    with pytest.raises(OutputError, match=r"holds a run\.yaml that cannot be read"):
        claim(tmp_path)


def test_claim_of_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="out is a file; allowed: a directory"):
        claim(tmp_path / "out")
    with pytest.raises(OutputError, match=r"cannot write output_dir .*: Not a directory"):
        claim(tmp_path / "out" / "deeper")
    assert (tmp_path / "out").read_text() == "mine"


def test_claim_of_an_unwritable_directory_is_refused():
    with pytest.raises(OutputError, match="cannot write output_dir /proc/sailplan: "):
        claim(Path("/proc/sailplan"))
    with pytest.raises(OutputError, match="cannot write output_dir /proc: "):
        claim(Path("/proc"))


def test_claim_on_a_full_disk_leaves_nothing_behind(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        with pytest.raises(OutputError, match="File too large") as error:
            claim(tmp_path / "runs" / "one")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)

    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_claim_that_fails_half_way_takes_its_first_file_back(tmp_path):
    (tmp_path / "run.yaml").mkdir()

    with pytest.raises(OutputError, match="Is a directory"):
        claim(tmp_path)

    assert [entry.name for entry in tmp_path.iterdir()] == ["run.yaml"]


def test_claim_taken_back_leaves_no_trace(tmp_path):
    run = a_run(tmp_path / "runs" / "one")
    directory = RunDirectory.of(run)
    claim = directory.claim(run, {directory.command_file: "accelerate launch\n"})
    assert directory.command_file.read_text() == "accelerate launch\n"

    claim.take_back()

    assert list(tmp_path.iterdir()) == []


def test_claim_taken_back_restores_the_earlier_one_and_keeps_other_files(tmp_path):
    before = claim(tmp_path).run_file.read_bytes()
    run = a_run(tmp_path, "--learning_rate", "1e-3")
    second = RunDirectory.of(run).claim(run)
    (tmp_path / "notes.txt").touch()

    second.take_back()

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("notes.txt", "run.yaml", "train.yaml")
    ]
    assert RunDirectory(tmp_path).run_file.read_bytes() == before


def test_claim_taken_back_keeps_a_folder_that_another_has_written_to(tmp_path):
    run = a_run(tmp_path / "runs" / "one")
    made = RunDirectory.of(run).claim(run)
    (tmp_path / "runs" / "two").mkdir()

    made.take_back()

    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]


def test_check_refuses_as_claim_does_and_writes_nothing(tmp_path):
    run = a_run(tmp_path / "runs" / "one")
    RunDirectory.of(run).check(run)
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "file").touch()
    claim(tmp_path / "out")
    for output_dir, flags, message in (
        (tmp_path / "file", "", "is a file"),
        (tmp_path / "file" / "deeper", "", "Not a directory"),
        (Path("/proc/sailplan"), "", "cannot write output_dir /proc/sailplan: "),
        (tmp_path / "out", "--dataset_name b/data", "holds another run"),
    ):
        run = a_run(output_dir, *flags.split())
        with pytest.raises(OutputError, match=message):
            RunDirectory.of(run).check(run)


def test_training_that_begins_claims_the_directory_and_is_seen_to_have_begun(tmp_path):
    run = a_run(tmp_path)
    directory = RunDirectory.of(run)
    assert directory.began_at() is None

    directory.begin(run)

    assert Run.from_file(directory.run_file) == run
    os.utime(directory.metrics_file, (1, 1))  # as if that were long ago
    assert directory.began_at() == 10**9
    directory.begin(run)
    assert directory.began_at() != 10**9


def test_training_that_begins_from_a_launchers_files_leaves_them_alone(tmp_path, monkeypatch):
    directory = claim(tmp_path, "--launch.processes", "2")
    before = directory.run_file.read_bytes()
    monkeypatch.chdir(tmp_path)

    directory.begin(Run.from_flags(["--config", "train.yaml"]))

    assert directory.run_file.read_bytes() == before


def test_checkpoints_are_listed_by_step(tmp_path):
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-x", "old-checkpoint-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-5").touch()

    directory = RunDirectory(tmp_path)

    assert [path.name for path in directory.checkpoints()] == ["checkpoint-9", "checkpoint-100"]
    assert directory.checkpoint(9) == directory.checkpoints()[0]
    assert RunDirectory(tmp_path / "none").checkpoints() == []
