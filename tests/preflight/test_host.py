"""Faults of the machine, made for real: shared memory, limits, disk, ports, caches, compilers."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from sailplan.preflight import cache, compiler, disk, host
from sailplan.preflight.finding import Subject
from sailplan.run.config import Run
from tests.cli.test_main import sailplan
from tests.preflight.machines import doctor, finding, gpu, mounted, run_file, run_of, with_gpus
from tests.support.fake_hub import TOKEN, serve

# Shared memory


def test_tiny_shared_memory_is_found_with_what_helps() -> None:
    tiny = mounted("mount -t tmpfs -o size=64k tmpfs /dev/shm")
    code, found = doctor("--quick", before=tiny)
    assert code == 5
    assert found["shared memory"].mark == "failed"
    assert "of 65.5 kB, and 1.1 GB are wanted" in found["shared memory"].text
    assert "--shm-size" in found["shared memory"].fix


def test_shared_memory_that_is_not_writable_is_found() -> None:
    closed = mounted("mount -t tmpfs -o ro tmpfs /dev/shm")
    _, found = doctor("--quick", before=closed)
    assert "/dev/shm cannot be written (Read-only file system)" in found["shared memory"].text


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ([], (0, "no workers")),
        (["--launch.processes", "2", "--launch.strategy", "ddp"], (0, "no workers")),
        (
            ["--launch.processes", "2", "--launch.strategy", "zero2"],
            (2 * host.DEEPSPEED_BYTES, "2 ranks"),
        ),
        (
            [
                *["--dataloader_num_workers", "3", "--max_pixels", "1000"],
                *["--per_device_train_batch_size", "4"],
            ],
            (3 * 2 * 4 * 1000 * 12, "1 ranks, 3 workers each"),
        ),
    ],
)
def test_shared_memory_of_a_run_grows_with_ranks_and_workers(
    tmp_path: Path, flags: list[str], wanted: tuple[int, str]
) -> None:
    run = run_of(tmp_path, "--launch.cpu", "true", *flags)
    assert host.shared_memory_needed(Subject.of(run)) == wanted


def test_shared_memory_of_gpus_holds_nccl_buffers(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    subject = Subject.of(run, machine=with_gpus(gpu(0), gpu(1)).machine)
    assert host.shared_memory_needed(subject) == (2 * host.NCCL_BYTES, "2 ranks")


# Limits


def test_low_limit_of_open_files_is_found() -> None:
    low = ["bash", "-c", 'ulimit -S -n 256; exec "$@"', "bash"]
    code, found = doctor("--quick", before=low)
    assert code == 5
    assert found["open files"].mark == "failed"
    assert found["open files"].text == "256 at once, and 1024 are wanted"
    assert found["open files"].fix.startswith("ulimit -n ")


def test_low_hard_limit_of_open_files_names_who_can_raise_it() -> None:
    low = ["bash", "-c", 'ulimit -n 256; exec "$@"', "bash"]
    _, found = doctor("--quick", before=low)
    assert "limits.conf" in found["open files"].fix


def test_locked_memory_matters_only_beside_infiniband(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "INFINIBAND", tmp_path)
    assert "no InfiniBand here" in host.locked_memory(Subject.of(None)).text
    (tmp_path / "mlx5_0").mkdir()
    found = host.locked_memory(Subject.of(None))
    assert "InfiniBand (mlx5_0)" in found.text
    assert found.mark == ("ok" if "no limit" in found.text else "failed")


# The port


def test_port_that_is_taken_is_found(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        flags = ["--launch.main_process_port", str(number), "--launch.processes", "2"]
        subject = Subject.of(run_of(tmp_path, "--launch.cpu", "true", *flags))
        found = host.port(subject)
    assert found.mark == "failed"
    assert f"main_process_port {number} cannot be used" in found.text
    assert host.port(subject).mark == "ok"


# Disk


def test_full_disk_is_found(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    path = run_file(tmp_path)
    # The file is as large as the disk; dd ends with an error when nothing more goes in.
    before = mounted(
        f"mount -t tmpfs -o size=1m tmpfs '{full}' && "
        f"{{ dd if=/dev/zero of='{full}/all' bs=64k 2>/dev/null; test -s '{full}/all'; }}"
    )
    code, found = doctor(str(path), "--output_dir", str(full / "out"), "--quick", before=before)
    assert code == 5
    assert found["disk"].mark == "failed"
    assert f"0 bytes free for {full}/out" in found["disk"].text
    assert "output_dir" in found["disk"].fix


def test_disk_that_is_too_small_for_the_plan_stops_a_launch_before_anything(
    tmp_path: Path,
) -> None:
    path = run_file(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json").write_text(json.dumps({"disk_bytes": 10**18}))
    before = sorted(tmp_path.rglob("*"))
    code, _, err = sailplan("train", str(path), "--launch.cpu", "true")
    assert code == 5
    [line] = err.splitlines()
    assert line.startswith("error: disk: ")
    assert "1000000000.0 GB are wanted (as planned)" in line
    assert f"`sailplan doctor {path}` tells more, --no-preflight goes on" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ([], 100 * (1 + 2 * 5)),
        (["--save_total_limit", "1"], 100 * (1 + 5)),
        (["--save_strategy", "no"], 100),
        (["--save_only_model", "true"], 100 * 3),
        (
            ["--launch.cpu", "true", "--launch.processes", "2", "--launch.strategy", "zero2"],
            100 * (1 + 2 * 7),
        ),
        (["--use_peft", "true"], 3 * disk.ADAPTER_BYTES),
    ],
)
def test_disk_without_a_plan_is_estimated_from_the_model(
    tmp_path: Path, flags: list[str], wanted: int
) -> None:
    run = run_of(tmp_path, *flags)
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(100))
    assert disk.wanted_bytes(Subject.of(run))[0] == wanted


def test_disk_of_a_model_of_unknown_size_still_has_to_be_there(tmp_path: Path) -> None:
    run = run_of(tmp_path, "--model_name_or_path", "owner/model")
    assert disk.wanted_bytes(Subject.of(run))[0] == disk.ADAPTER_BYTES


# The hub


def test_hub_cache_that_is_not_writable_is_found(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    closed = mounted(f"mount --bind '{home}' '{home}' && mount -o remount,ro,bind '{home}'")
    code, found = doctor("--quick", before=closed, env={"HF_HOME": str(home)})
    assert code == 5
    assert found["hub cache"].mark == "failed"
    assert f"{home}/datasets cannot be written (Read-only file system)" in found["hub cache"].text
    assert "HF_HOME" in found["hub cache"].fix


def test_hub_cache_below_a_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_DATASETS_CACHE", f"{tmp_path}/file/datasets")
    assert "is a file" in cache.writable(Subject.of(None)).text


def test_model_that_is_not_cached_is_found_where_the_hub_is_off(tmp_path: Path) -> None:
    path = run_file(tmp_path)
    flags = ["--model_name_or_path", "owner/model", "--launch.cpu", "true"]
    code, out, _ = sailplan("doctor", str(path), *flags, "--quick")
    assert code == 5
    lines = out.splitlines()
    [number] = [n for n, line in enumerate(lines) if line.startswith("✗")]
    assert "model and data" in lines[number]
    assert "owner/model is no folder here and not in the local cache" in lines[number]
    assert lines[number + 1].endswith(f"-> get it where there is a network: sailplan fetch {path}")


def test_model_that_comes_later_is_no_fault_where_the_hub_is_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    found = cache.at_hand(Subject.of(run_of(tmp_path, "--model_name_or_path", "owner/model")))
    assert (found.mark, found.text) == (
        "ok",
        "not here yet, and fetched when training starts: owner/model",
    )


@pytest.mark.parametrize(
    ("token", "mark", "text"),
    [
        (TOKEN, "ok", "the hub knows it as tester"),
        ("hf_" + "b" * 34, "failed", "the hub refuses the token"),
        ("", "ok", "none; only gated and private repositories need one"),
    ],
)
def test_token_is_shown_to_the_hub(tmp_path: Path, token: str, mark: str, text: str) -> None:
    with serve() as hub:
        found = finding("cache.token", hub.environment(tmp_path, HF_TOKEN=token))
    assert (found.mark, found.text) == (mark, text)


def test_hub_that_does_not_answer_proves_nothing_of_a_token(tmp_path: Path) -> None:
    with serve() as hub:
        environment = hub.environment(tmp_path, HF_TOKEN=TOKEN)
    found = finding("cache.token", environment)
    assert (found.mark, found.text) == ("not checked", "there is one, and the hub does not answer")


def test_push_without_a_token_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    found = cache.token(Subject.of(run_of(tmp_path, "--push_to_hub", "true")))
    assert (found.mark, found.text) == ("failed", "push_to_hub without a token")


# The compiler


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH without anything."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/empty")
    monkeypatch.delenv("CXX", raising=False)


@pytest.mark.usefixtures("no_compiler")
def test_missing_compiler_is_found_where_deepspeed_needs_it(tmp_path: Path) -> None:
    path = run_file(tmp_path)
    zero = ["--launch.cpu", "true", "--launch.processes", "2", "--launch.strategy", "zero3"]
    code, out, _ = sailplan("doctor", str(path), *zero, "--quick")
    assert code == 5
    [line] = [line for line in out.splitlines() if line.startswith("✗")]
    assert "no C++ compiler (c++ is not on PATH)" in line
    assert "apt-get install g++" in out
    found = compiler.compiling(Subject.of(Run.from_file(path, zero)))
    assert found.mark == "not checked"


@pytest.mark.usefixtures("no_compiler")
def test_missing_compiler_is_no_fault_where_nothing_is_compiled(tmp_path: Path) -> None:
    code, out, _ = sailplan("doctor", str(run_file(tmp_path)), "--launch.cpu", "true", "--quick")
    assert (code, "not needed: single compiles nothing here" in out) == (0, True)


def test_compiler_that_does_not_compile_is_found(tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    broken.write_text(
        f'#!/bin/sh\ncase "$*" in *-version*|*-dump*) exec {shutil.which("c++")} "$@";; esac\n'
        "echo 'c++: internal compiler error' >&2\nexit 4\n"
    )
    broken.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")}
    environment.pop("CXX", None)
    subject = Subject.of(None)
    found = compiler.compiling(
        Subject(machine=subject.machine, driver=subject.driver, environment=environment)
    )
    assert found.mark == "failed"
    assert "it does not compile" in found.text
    assert "apt-get install g++" in found.fix
    assert "internal compiler error" in found.detail
