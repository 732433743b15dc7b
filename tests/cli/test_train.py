"""`sailplan train`: which file is meant, what --dry-run prints, how mistakes end."""

from __future__ import annotations

import shlex
import socket
from pathlib import Path

import pytest

from sailplan import files
from tests.cli.test_main import sailplan


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model_name_or_path: owner/model\ndataset_name: owner/data\noutput_dir: {tmp_path}/out\n"
    )
    return path


def test_dry_run_prints_command_and_files_and_writes_nothing(
    run_file: Path, tmp_path: Path
) -> None:
    flags = ["--launch.processes", "2", "--launch.strategy", "zero3", "--launch.cpu", "true"]
    code, out, err = sailplan(
        "train", str(run_file), *flags, "--learning_rate", "1e-4", "--dry-run"
    )
    assert (code, err) == (0, "")
    command = shlex.split(out.splitlines()[0])
    assert command[command.index("accelerate") + 1] == "launch"
    assert command[-4:] == [
        "-m",
        "sailplan.train.sft_vlm",
        "--config",
        f"{tmp_path}/out/train.yaml",
    ]
    assert "\nlearning_rate: 0.0001\n" in out
    assert "\n  zero_stage: 3\n" in out
    assert list(tmp_path.iterdir()) == [run_file]


def test_dry_run_takes_a_run_directory(run_file: Path) -> None:
    code, out, _ = sailplan("train", str(run_file.parent), "--dry-run")
    assert code == 0
    assert "model_name_or_path: owner/model" in out


@pytest.mark.parametrize(
    "name", sorted(file.stem for file in files.folder("launch").glob("*.yaml"))
)
def test_dry_run_takes_every_shipped_run_by_name(name: str) -> None:
    code, out, err = sailplan("train", name, "--dry-run", "--launch.cpu", "true")
    assert code == 0, err
    assert "accelerate launch" in out


def test_dry_run_names_variables_of_the_run_file_and_hides_their_values(run_file: Path) -> None:
    run_file.write_text(run_file.read_text() + "env: {WANDB_API_KEY: sesame}\n")
    code, out, err = sailplan("train", str(run_file), "--dry-run")
    assert code == 0
    assert "# WANDB_API_KEY is set as the run file says" in out
    assert "sesame" not in out + err


def test_dry_run_without_compiler_goes_on_with_one_process_and_says_so(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    flags = ["--launch.processes", "2", "--launch.cpu", "true", "--dry-run"]
    code, out, err = sailplan("train", str(run_file), *flags)
    assert code == 0
    assert "--num_processes 1 " in out
    assert err == (
        "strategy single: zero3 cannot start on the CPU: no C++ compiler (no-such-compiler is not "
        "on PATH); going on with one process, so that the global batch is 1/2 of what was asked\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([""], 2, "there is no run file ''"),
        (["nowhere.yaml"], 2, "there is no run file 'nowhere.yaml'"),
        (["{folder}/empty"], 2, "holds no run.yaml"),
        (["{folder}/run.yaml", "--learning_rat", "1"], 2, "did you mean learning_rate?"),
        (["{folder}/run.yaml", "--learning_rate", "fast"], 2, "learning_rate"),
        (["{folder}/run.yaml", "--learning_rate=-1"], 2, "learning_rate is -1"),
        (["{folder}/run.yaml", "--model_name_or_path", "./missing"], 3, "no model folder"),
        (["{folder}/run.yaml", "--model_name_or_path", "{folder}/empty"], 3, "no config.json; "),
        (
            ["{folder}/run.yaml", "--dataset_name", "{folder}/missing.json"],
            4,
            "there is no {folder}",
        ),
        (["{folder}/run.yaml", "--main_process_port", "{taken}"], 6, "{taken} cannot be used"),
        (["{folder}/run.yaml", "--output_dir", "{folder}/run.yaml"], 7, "is a file"),
    ],
)
def test_mistake_ends_in_one_line_with_its_code_and_nothing_written(
    run_file: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        values = {"folder": tmp_path, "taken": server.getsockname()[1]}
        got, _, err = sailplan("train", *(text.format(**values) for text in arguments))
    assert got == code
    [line] = err.splitlines()
    assert line.startswith("error: ")
    assert message.format(**values) in line
    assert sorted(tmp_path.rglob("*")) == before
