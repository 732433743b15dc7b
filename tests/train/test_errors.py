"""How a rank ends, in real processes: what it prints and with which code it exits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys
from sailplan.errors import DataError
from sailplan.train.errors import report_errors
with report_errors():
    {body}
"""


def start(body: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT.format(body=body)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | environment, **pipes)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    return process.wait(timeout=30), process.communicate()[1]


def test_rank_without_error_ends_quietly_with_zero() -> None:
    assert end(start("print('trained')")) == (0, "")


def test_rank_with_user_error_prints_one_line_and_exits_with_its_code() -> None:
    code, text = end(start("raise DataError('row 3 is empty', todo='remove it')"))
    assert (code, text) == (4, "error: row 3 is empty; remove it\n")


def test_rank_with_user_error_in_a_data_worker_prints_the_same_line() -> None:
    body = """
    from torch.utils.data import DataLoader
    def collate(rows):
        try:
            raise OSError('cut')
        except OSError as error:
            raise DataError('image a.png is cut off', todo='get it again') from error
    list(DataLoader([1], collate_fn=collate, num_workers=1))"""
    assert end(start(body)) == (4, "error: image a.png is cut off; get it again\n")


def test_rank_with_bug_keeps_its_traceback() -> None:
    code, text = end(start("raise ZeroDivisionError('ours')"))
    assert code == 1
    assert text.startswith("Traceback")
    assert text.endswith("ZeroDivisionError: ours\n")


def test_other_rank_that_is_ended_meanwhile_stays_quiet() -> None:
    body = "print('failing', flush=True); raise DataError('row 3 is empty')"
    process = start(body, RANK="1", WORLD_SIZE="2")
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()  # as the launcher does when the first rank has exited
    assert end(process) == (-signal.SIGTERM, "")


def test_other_rank_that_fails_alone_speaks_too() -> None:
    code, text = end(start("raise DataError('row 3 is empty')", RANK="1", WORLD_SIZE="2"))
    assert (code, text) == (4, "error: row 3 is empty\n")


@pytest.mark.parametrize("world_size", ["1", "2"])
def test_interrupted_rank_exits_with_130_and_prints_nothing(world_size: str) -> None:
    body = "os.kill(os.getpid(), signal.SIGINT); signal.pause()"
    assert end(start(body, WORLD_SIZE=world_size)) == (130, "")


def test_rank_interrupted_twice_exits_as_if_once() -> None:
    body = """
    try:
        os.kill(os.getpid(), signal.SIGINT); signal.pause()
    finally:
        os.kill(os.getpid(), signal.SIGINT)"""
    assert end(start(body)) == (130, "")


def test_rank_interrupted_while_failing_stays_quiet() -> None:
    body = """
    try:
        raise RuntimeError('connection closed by peer')
    finally:
        os.kill(os.getpid(), signal.SIGINT)"""
    assert end(start(body, WORLD_SIZE="2")) == (130, "")


def test_rank_that_is_done_runs_exit_handlers_and_meets_no_destructor() -> None:
    code = """
import atexit, ctypes, os, sys
from sailplan.train.errors import leave
libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.abort, None, None)  # stands for a destructor that aborts
atexit.register(print, "tracker closed")
if sys.argv[1:]:
    os.environ["WORLD_SIZE"] = sys.argv[1]
leave()
"""
    ended = [
        subprocess.run([sys.executable, "-c", code, *size], capture_output=True, text=True)
        for size in ([], ["1"], ["2"])
    ]
    assert [one.stdout for one in ended] == ["tracker closed\n"] * 3
    assert [one.returncode for one in ended] == [-signal.SIGABRT, 0, 0]
