"""`sailplan logs` on runs of this machine: which log, how much of it, and what may be in it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sailplan.run.paths import RunPaths
from sailplan.run.state import ended
from sailplan.supervise.lines import start_of_last
from tests.cli.test_main import sailplan
from tests.support.runs import change_state, copy_of


@pytest.fixture
def paths(trained_run: Path, tmp_path: Path) -> RunPaths:
    """A finished run, to be changed."""
    return copy_of(trained_run, tmp_path / "run")


def logged(paths: RunPaths, text: str, rank: int = 0) -> None:
    paths.logs.mkdir(exist_ok=True)
    (paths.logs / f"rank-{rank}.log").write_bytes(text.encode())


def test_first_ranks_log_is_printed_whole(trained_run: Path) -> None:
    code, out, err = sailplan("logs", str(trained_run))
    assert (code, err) == (0, "")
    assert out == (trained_run / "logs" / "rank-0.log").read_text()
    assert out.startswith("==== launch 1, rank 0, ")


def test_one_ranks_last_lines_are_printed(paths: RunPaths) -> None:
    logged(paths, "".join(f"line {number}\n" for number in range(50_000)), rank=3)
    _, out, _ = sailplan("logs", str(paths.path), "--rank", "3", "--lines", "2")
    assert out == "line 49998\nline 49999\n"
    assert len(sailplan("logs", str(paths.path), "--rank", "3")[1].splitlines()) == 50_000


@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize("text", ["", "a", "a\n", "a\nb", "a\n\nb\n", "x\n" * 40_000])
def test_last_lines_begin_where_they_do(tmp_path: Path, text: str, count: int) -> None:
    file = tmp_path / "log"
    file.write_text(text)
    last = text.splitlines(keepends=True)[-count:]
    assert text[start_of_last(file, count) :] == "".join(last)


def test_log_cannot_steer_the_terminal_and_bars_leave_their_last_state(paths: RunPaths) -> None:
    logged(paths, "\x1b[1;31mred\x1b[0m\n 10%|#\r 50%|##\r\n\x1b]0;title\x07\u202ebad\n")
    _, out, _ = sailplan("logs", str(paths.path))
    assert out == "red\n 50%|##\n\ufffd]0;title\ufffd\ufffdbad\n"


def test_log_that_is_not_there_is_said_with_how_the_run_stands(paths: RunPaths) -> None:
    code, _, err = sailplan("logs", str(paths.path), "--rank", "7")
    assert code == 7
    assert err == (
        f"error: there is no {paths.logs}/rank-7.log yet; allowed: ranks 0 to 0; run: finished\n"
    )
    code, _, err = sailplan("logs", str(paths.path), "--job", "merge")
    assert (code, err) == (
        2,
        "error: the run has no merge job; it was not submitted to Slurm\n",
    )
    code, _, err = sailplan("logs", str(paths.path), "--job", "trian")
    assert err == "error: --job 'trian' is none; allowed: train, merge, compare\n"
    assert sailplan("logs", str(paths.path), "--job", "train", "--rank", "1")[0] == 2


def test_log_is_followed_until_the_run_ends(paths: RunPaths) -> None:
    times = {"started_at": time.time(), "updated_at": time.time()}
    change_state(paths, state="running", exit_code=None, pid=os.getpid(), step=3, **times)
    logged(paths, "".join(f"line {number}\n" for number in range(100)))
    command = [sys.executable, "-m", "sailplan", "logs", str(paths.path), "-f", "-n", "2"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["line 98\n", "line 99\n"]
        with (paths.logs / "rank-0.log").open("a") as file:
            file.write("half a line")
            file.flush()
            file.write(", and its end\nthe rest")
        assert process.stdout.readline() == "half a line, and its end\n"
        ended(paths, 8, "the loss is NaN")
        out, err = process.communicate(timeout=60)
    assert out == "the rest\n"
    assert err.startswith("failed at step 3 of 12: the loss is NaN; `sailplan train ")
