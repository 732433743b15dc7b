"""`python -m sailplan.launcher.accelerate` with real ranks: exit codes, one line, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sailplan.files import preset
from tests.launcher.support import is_alive

RANK = """
import os, signal, sys, time
from sailplan.errors import DataError
from sailplan.train.errors import report_errors
with report_errors():
    rank = int(os.environ.get("RANK", "0"))
    os.write(1, f"ready {os.getpid()}\\n".encode())  # at once: ranks share the pipe
    if "data" in sys.argv:
        raise DataError("row 3 is empty")
    if "killed" in sys.argv and rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if "stay" in sys.argv:
        time.sleep(100)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rank") / "rank.py"
    path.write_text(RANK)
    return path


def start(script: Path, mode: str, processes: int) -> subprocess.Popen[str]:
    config = preset("ddp" if processes > 1 else "single_gpu")
    flags = ["--config_file", str(config), "--num_processes", str(processes)]
    command = [sys.executable, "-m", "sailplan.launcher.accelerate", "launch", *flags]
    port = ["--main_process_port", "0", str(script), mode]
    return subprocess.Popen(
        [*command, *port], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    text = process.communicate(timeout=120)[1]
    return process.returncode, text


@pytest.mark.parametrize("processes", [1, 2])
def test_launch_with_user_error_in_every_rank_prints_one_line(script: Path, processes: int) -> None:
    assert end(start(script, "data", processes)) == (4, "error: row 3 is empty\n")


def test_launch_with_killed_rank_names_it_and_the_signal(script: Path) -> None:
    code, text = end(start(script, "killed", 2))
    assert code == 128 + signal.SIGKILL
    assert text == "error: rank 0 was ended by SIGKILL; the machine may have run out of memory\n"


@pytest.mark.parametrize(
    ("processes", "signum"), [(1, signal.SIGINT), (2, signal.SIGTERM), (2, signal.SIGUSR1)]
)
def test_launch_that_is_asked_to_stop_leaves_no_process(
    script: Path, processes: int, signum: signal.Signals
) -> None:
    process = start(script, "stay", processes)
    assert process.stdout is not None
    ranks = [int(process.stdout.readline().split()[1]) for _ in range(processes)]
    process.send_signal(signum)
    assert end(process) == (75, "")
    assert not [rank for rank in ranks if is_alive(rank)]


def test_launch_whose_parent_is_gone_ends_too(script: Path, tmp_path: Path) -> None:
    """A launcher that was killed outright cannot stop its ranks: the kernel tells them."""
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import os, subprocess, sys\n"
        "os.environ['SAILPLAN_LAUNCHERS'] = str(os.getpid())\n"
        "subprocess.run([sys.executable, '-m', 'sailplan.launcher.accelerate', *sys.argv[1:]])\n"
    )
    flags = ["--config_file", str(preset("single_gpu")), str(script), "stay"]
    command = [sys.executable, str(parent), "launch", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ)) as process:
        assert process.stdout is not None
        rank = int(process.stdout.readline().split()[1])
        process.kill()
        process.stdout.read()  # ends when the last process that can write to it has ended
    assert not is_alive(rank)
