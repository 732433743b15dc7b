"""The exact command, environment and files of a launch, and a real shell reading it back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from sailplan.errors import RunFileError
from sailplan.launcher.command import Launch, command
from sailplan.run.config import Run
from tests.launcher.support import machine, run


def launch(folder: Path, *flags: str, gpus: int = 0, **environment: str) -> Launch:
    wanted = run(folder, *flags)
    return command(wanted, machine(gpus=gpus, cores=16), port=29511, environment=environment)


def test_command_of_two_cpu_processes_is_exactly(tmp_path: Path) -> None:
    made = launch(tmp_path, "--launch.processes", "2")
    out = tmp_path / "out"
    assert made.argv == (
        "accelerate", "launch",
        "--config_file", f"{out}/accelerate.yaml",
        "--num_processes", "2",
        "--main_process_port", "29511",
        "-m", "sailplan.train.sft_vlm",
        "--config", f"{out}/train.yaml",
    )  # fmt: skip
    assert made.env == {
        "OMP_NUM_THREADS": "8",
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    assert list(made.files) == [out / "train.yaml", out / "accelerate.yaml"]
    assert not out.exists()


def test_command_on_several_machines_leaves_rank_and_meeting_place_to_them(tmp_path: Path) -> None:
    wanted = run(tmp_path, "--launch.processes", "2", "--launch.nodes", "2")
    made = command(wanted, machine(cores=16), port=None, environment={})
    assert made.argv[4:9] == ("--num_processes", "4", "--num_machines", "2", "-m")
    assert (made.processes, made.nodes) == (4, 2)
    # Each machine's cores are its own ranks', which do not meet on the loopback device.
    assert made.env == {"OMP_NUM_THREADS": "8", "DS_ACCELERATOR": "cpu"}


def test_command_on_gpus_sets_nothing_that_accelerate_knows(tmp_path: Path) -> None:
    made = launch(tmp_path, gpus=4, OMP_NUM_THREADS="3")
    assert made.argv[4:8] == ("--num_processes", "4", "--main_process_port", "29511")
    assert made.env == {}
    assert "use_cpu" not in yaml.safe_load(made.files[tmp_path / "out/train.yaml"])


@pytest.mark.parametrize(
    ("visible", "first"), [(None, "0"), ("2,3", "2"), ("GPU-ab,GPU-c", "GPU-ab")]
)
def test_command_of_one_process_among_gpus_shows_it_one(
    tmp_path: Path, visible: str | None, first: str
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    made = launch(tmp_path, "--launch.strategy", "single", gpus=2, **environment)
    assert made.env["CUDA_VISIBLE_DEVICES"] == first


def test_command_on_the_cpu_of_a_gpu_machine_hides_the_gpus(tmp_path: Path) -> None:
    made = launch(tmp_path, "--launch.cpu", "true", gpus=2)
    assert made.env["CUDA_VISIBLE_DEVICES"] == ""
    assert yaml.safe_load(made.files[tmp_path / "out/train.yaml"])["use_cpu"] is True


def test_command_passes_other_accelerate_flags_on(tmp_path: Path) -> None:
    flags = ["--dynamo_backend", "inductor", "--enable_cpu_affinity", "--num_machines", "1"]
    made = launch(tmp_path, *flags, "--num_cpu_threads_per_process", "5", gpus=2)
    assert made.env == {"OMP_NUM_THREADS": "5"}
    before_module = made.argv[: made.argv.index("-m")]
    assert before_module[-3:] == ("--dynamo_backend", "inductor", "--enable_cpu_affinity")
    assert "--num_machines" not in before_module


def test_command_settles_the_global_batch_for_its_ranks(tmp_path: Path) -> None:
    flags = ["--global_batch_size", "32", "--per_device_train_batch_size", "4"]
    made = launch(tmp_path, *flags, gpus=2)
    trained = yaml.safe_load(made.files[tmp_path / "out/train.yaml"])
    assert trained["gradient_accumulation_steps"] == 4
    with pytest.raises(RunFileError, match="no multiple of per_device_train_batch_size 4 × 3"):
        launch(tmp_path, *flags, gpus=3)


def test_command_never_holds_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "model_name_or_path: a/b\ndataset_name: c/d\nhub_token: hf_aaaaaaaaaaaaaaaaaaaaaaaaa\n"
        f"env: {{WANDB_API_KEY: sesame}}\noutput_dir: {tmp_path}/out\n"
    )
    made = command(Run.from_file(path), machine(gpus=2), port=1, environment={})
    assert "hf_aaa" not in f"{made}"
    assert "sesame" not in f"{made}"


def test_command_with_nasty_paths_is_read_back_by_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s; echo $HOME `id` "quoted"'
    folder.mkdir()
    made = launch(folder, "--launch.processes", "2", "--launch.strategy", "ddp")
    fake = tmp_path / "bin" / "accelerate"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nfor one in "$@"; do printf "%s\\0" "$one"; done\n')
    fake.chmod(0o755)
    shell = subprocess.run(
        ["/bin/sh", "-c", made.shell()],
        env={"PATH": f"{fake.parent}:/usr/bin:/bin"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert tuple(shell.stdout.split("\0")[:-1]) == made.argv[1:]
