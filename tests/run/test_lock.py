"""The lock on a run's directory, between real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sailplan.errors import OutputError
from sailplan.run.directory import RunDirectory
from sailplan.run.lock import holder
from tests.launcher.support import run

HOLD = """
import sys
from pathlib import Path
from sailplan.run.lock import hold
hold(Path(sys.argv[1]), [int(pid) for pid in sys.argv[2:]])
print("held", flush=True)
sys.stdin.readline()
"""


@contextmanager
def held(folder: Path, *launchers: int) -> Iterator[subprocess.Popen[str]]:
    """Has another process hold the lock of `folder`, until it is told to end or killed."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", HOLD, str(folder / "run.lock"), *map(str, launchers)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def gone_pid() -> int:
    """The process id of a process that is gone."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_directory_where_a_process_trains_is_refused_by_its_name(tmp_path: Path) -> None:
    wanted = run(tmp_path)
    with (
        held(tmp_path / "out", os.getpid()) as process,
        pytest.raises(OutputError, match=f"process {process.pid} on .* is training in .*/out"),
    ):
        RunDirectory.of(wanted).check(wanted)


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with held(tmp_path / "out", os.getpid()) as process:
        found = holder(tmp_path / "out" / "run.lock")
        assert found is not None
        assert (found.pid, found.launchers) == (process.pid, (os.getpid(),))
        process.kill()
        process.wait()
        assert holder(tmp_path / "out" / "run.lock") is None
        RunDirectory.of(run(tmp_path)).check(run(tmp_path))


def test_ranks_that_a_killed_launcher_left_are_waited_for(tmp_path: Path) -> None:
    with held(tmp_path / "out", gone_pid()) as process:
        waiting = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from pathlib import Path; from sailplan.run.lock import *\n"
                "wait_until_free(Path(sys.argv[1]))",
                str(tmp_path / "out" / "run.lock"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiting.stderr is not None
        line = waiting.stderr.readline()
        assert line == f"waiting for process {process.pid} to end, which a killed launcher left\n"
        process.kill()
        assert waiting.wait(timeout=30) == 0
        waiting.stderr.close()


def test_directory_without_a_lock_is_free(tmp_path: Path) -> None:
    assert holder(tmp_path / "run.lock") is None
