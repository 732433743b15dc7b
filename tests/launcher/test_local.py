"""Launches carried out with real processes, ports and a real terminal's Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sailplan.errors import LaunchError
from sailplan.launcher.local import meeting_port
from tests.launcher.support import is_alive, run

CTRL_C = b"\x03"


def start(folder: Path, what: str, *flags: str, **pipes: object) -> subprocess.Popen[bytes]:
    run(folder)
    argv = [sys.executable, "-m", "tests.launcher.launch", str(folder / "run file.yaml")]
    flags = ("--run_name", what, "--launch.strategy", "ddp", "--launch.processes", "2", *flags)
    return subprocess.Popen([*argv, *flags], **pipes)  # type: ignore[call-overload]


def take_terminal() -> None:
    """Makes standard input the terminal that sends this session its Ctrl-C."""
    os.open(os.ttyname(0), os.O_RDWR)


class Terminal:
    """A process at a terminal of its own."""

    def __init__(self, folder: Path, what: str) -> None:
        self.main, side = pty.openpty()
        self.process = start(
            folder, what, stdin=side, stdout=side, stderr=side,
            start_new_session=True, preexec_fn=take_terminal,
        )  # fmt: skip
        os.close(side)
        self.text = ""

    def wait_for(self, text: str, *, count: int = 1) -> None:
        """Reads on until the text has been seen so often."""
        deadline = time.monotonic() + 120
        while self.text.count(text) < count:
            assert time.monotonic() < deadline, self.text
            self.read()

    def read(self) -> bool:
        """Reads what is there; False at the end."""
        if not select.select([self.main], [], [], 1.0)[0]:
            return True
        try:
            data = os.read(self.main, 65536)
        except OSError:  # the last process that had this terminal has gone
            return False
        self.text += data.decode()
        return bool(data)

    def end(self) -> int:
        """Reads to the end and returns the exit code."""
        while self.read():
            pass
        return self.process.wait(timeout=120)

    def ranks(self) -> list[int]:
        """Returns the ranks' process ids."""
        return [int(line.split()[2]) for line in self.text.splitlines() if line.startswith("rank")]


def test_launch_writes_the_run_and_its_record(tmp_path: Path) -> None:
    done = start(tmp_path, "ends", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = done.communicate(timeout=120)
    assert (done.returncode, err) == (0, b"")
    assert sorted(line.split()[1] for line in out.splitlines()) == [b"0", b"1"]
    folder = tmp_path / "out"
    names = {"run.yaml", "train.yaml", "accelerate.yaml", "command.txt", "environment.json"}
    assert {file.name for file in folder.iterdir()} == {*names, "state.json"}
    assert yaml.safe_load((folder / "train.yaml").read_text())["use_cpu"] is True
    again = yaml.safe_load((folder / "run.yaml").read_text())
    assert again["launch"] == {"strategy": "ddp", "processes": 2}
    assert "use_cpu" not in again
    assert "--num_processes 2" in (folder / "command.txt").read_text()
    record = json.loads((folder / "environment.json").read_text())
    assert record["packages"]["trl"]
    assert record["processes"] == 2


def test_launch_with_user_error_in_the_ranks_ends_in_one_line(tmp_path: Path) -> None:
    done = start(tmp_path, "fails", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.communicate(timeout=120)[1] == b"error: row 3 is empty\n"
    assert done.returncode == 4
    assert [path.name for path in tmp_path.iterdir()] == ["run file.yaml"]


def test_launch_that_fails_before_training_leaves_the_directory_as_it_was(tmp_path: Path) -> None:
    first = start(tmp_path, "fails while training", stderr=subprocess.PIPE)
    first.communicate(timeout=120)
    assert first.returncode == 4
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {"run.yaml", "train.yaml", "metrics.jsonl"} <= kept.keys()

    again = start(tmp_path, "fails", "--learning_rate", "1e-3", stderr=subprocess.PIPE)
    again.communicate(timeout=120)
    assert again.returncode == 4
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == kept


def test_ctrl_c_once_stops_every_process_without_a_traceback(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "stays")
    terminal.wait_for("waiting", count=2)
    os.write(terminal.main, CTRL_C)
    assert terminal.end() == 75
    assert not (tmp_path / "out").exists()  # no rank had begun to train
    assert "stopping; Ctrl-C again kills the run" in terminal.text
    assert "Traceback" not in terminal.text
    assert len(terminal.ranks()) == 2
    assert not [rank for rank in terminal.ranks() if is_alive(rank)]


def test_ctrl_c_twice_kills_ranks_that_do_not_stop(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "ignores signals")
    terminal.wait_for("waiting", count=2)
    os.write(terminal.main, CTRL_C)
    terminal.wait_for("stopping")
    os.write(terminal.main, CTRL_C)
    assert terminal.end() == 130
    assert not [rank for rank in terminal.ranks() if is_alive(rank)]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_launch_that_is_asked_to_stop_leaves_no_process(
    tmp_path: Path, signum: signal.Signals
) -> None:
    process = start(tmp_path, "stays", stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    ranks = [int(line.split()[2]) for line in lines if line.startswith(b"rank")]
    process.send_signal(signum)
    process.communicate(timeout=120)
    assert process.returncode == 75
    assert len(ranks) == 2
    assert not [rank for rank in ranks if is_alive(rank)]


def test_meeting_port_is_the_one_asked_for_or_free(tmp_path: Path) -> None:
    free = meeting_port(run(tmp_path))
    assert 1024 <= free <= 65535
    assert meeting_port(run(tmp_path, "--main_process_port", str(free))) == free
    assert meeting_port(run(tmp_path, "--launch.main_process_port", str(free))) == free


@pytest.mark.parametrize("flag", ["--main_process_port", "--launch.main_process_port"])
def test_meeting_port_that_is_taken_is_refused(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=f"main_process_port {port} cannot be used"):
            meeting_port(run(tmp_path, flag, str(port)))
