"""What a rank does when it is asked to stop, in real processes without a model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.launcher.support import is_alive

SCRIPT = """
import os, signal, sys, threading, time
from pathlib import Path
from sailplan.run.paths import RunPaths
from sailplan.train import requests
from sailplan.train.errors import report_errors
from sailplan.train.requests import REQUESTS
with report_errors(), REQUESTS.heard():
    {body}
"""
WAIT = "os.write(1, b'ready\\n'); time.sleep(100)"  # one write: two ranks share the pipe
TRAIN = "REQUESTS.begin(lambda cause: os.write(1, f'{cause}\\n'.encode()))"


def start(body: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT.format(body=body)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | environment, **pipes)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP], ids=str
)
def test_rank_that_does_not_train_yet_ends_at_once(signum: signal.Signals) -> None:
    process = start(WAIT)
    line(process)
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 75
    assert out == f"stopped before training began, as asked ({signum.name})\n"
    assert err == ""


def test_rank_that_swallows_the_interrupt_ends_all_the_same() -> None:
    body = """
    while True:
        try:
            print('ready', flush=True); time.sleep(100)
        except KeyboardInterrupt:
            pass"""
    process = start("requests.UNWIND_S = 0.5" + body)
    line(process)
    process.terminate()
    assert process.wait(timeout=30) == 75
    process.communicate()


def test_rank_in_training_only_hears_the_first_request_and_ends_at_a_later_one() -> None:
    process = start(f"requests.SAME_REQUEST_S = 1.0; {TRAIN}; print('ready', flush=True)\n"
                    "    while True: time.sleep(0.1)")  # fmt: skip
    line(process)
    process.send_signal(signal.SIGUSR1)
    assert line(process) == "SIGUSR1"
    process.send_signal(signal.SIGINT)  # the same request, from someone else
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 128 + signal.SIGINT
    process.communicate()


def test_rank_that_stands_in_c_hears_a_request() -> None:
    """As in a collective: Python's own handlers have to wait for its end."""
    process = start(f"{TRAIN}; print('ready', flush=True)\n    import ctypes\n"
                    "    ctypes.CDLL(None).pause(); ctypes.CDLL(None).sleep(100)")  # fmt: skip
    line(process)
    process.terminate()
    assert line(process) == "SIGTERM"
    process.kill()
    process.communicate()


def test_stop_file_of_an_earlier_run_is_taken_away_and_a_new_one_heeded(tmp_path: Path) -> None:
    stop = tmp_path / "STOP"
    stop.touch()
    process = start(f"REQUESTS.watch(RunPaths(Path({str(tmp_path)!r}))); {TRAIN}; {WAIT}")
    assert line(process) == "ready"
    assert not stop.exists()
    stop.touch()
    assert line(process) == "the stop file"
    process.kill()
    process.communicate()


def test_request_that_came_before_training_keeps_it_from_beginning() -> None:
    body = f"""
    try:
        os.kill(os.getpid(), signal.SIGTERM); time.sleep(100)
    except KeyboardInterrupt:
        pass
    {TRAIN}"""
    process = start(body)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "stopped before training began" in out


FORK = """
    import multiprocessing
    def work():
        print(os.getpid(), flush=True)
        time.sleep(100)
    child = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    child.start()
    """


def test_forked_child_is_ended_by_its_parent_alone() -> None:
    body = f"""{TRAIN}{FORK}sys.stdin.readline()
    child.terminate(); child.join()
    print("ended", flush=True)"""
    command = [sys.executable, "-c", SCRIPT.format(body=body)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        child = int(line(process))
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            os.kill(child, signum)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        assert is_alive(child)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert line(process) == "ended"
    assert not is_alive(child)


def test_forked_child_of_a_killed_rank_is_gone() -> None:
    process = start(f"{TRAIN}{FORK}time.sleep(100)")
    child = psutil.Process(int(line(process)))
    process.kill()
    process.communicate()  # ends when nobody has its pipes any more
    psutil.wait_procs([child], timeout=10)
    assert not is_alive(child.pid)


LAUNCHER = """
import os, subprocess, sys
from sailplan.processes import with_launcher
env = {**os.environ, **with_launcher(()), "LOCAL_WORLD_SIZE": "2", "RANK": "1"}
ranks = [subprocess.Popen([sys.executable, "-c", code], env=env) for code in sys.argv[1:]]
sys.stdin.readline()
ranks[0].kill(); ranks[0].wait()
ranks[1].terminate()
print(ranks[1].wait(), flush=True)
"""


@contextmanager
def two_ranks(code: str) -> Iterator[subprocess.Popen[str]]:
    """Starts a launcher of two ranks that run a program, and waits until both are ready."""
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, code, code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as launcher:
        assert {line(launcher), line(launcher)} == {"ready"}
        yield launcher


def test_rank_whose_neighbour_has_died_ends_at_the_signal_of_the_agent() -> None:
    """In training it would go on to its next vote, which never comes."""
    code = SCRIPT.format(body=f"{TRAIN}; {WAIT}")
    with two_ranks(code) as launcher:
        assert launcher.stdin is not None
        launcher.stdin.write("\n")
        launcher.stdin.flush()
        assert line(launcher) == str(128 + signal.SIGTERM)


def test_rank_whose_launcher_is_killed_is_told_and_ends_in_time() -> None:
    code = SCRIPT.format(body=f"requests.ORPHAN_GRACE_S = 1.0; {TRAIN}; {WAIT}")
    with two_ranks(code) as launcher:
        launcher.kill()
        assert launcher.stdout is not None
        assert launcher.stdout.read() == "its launcher is gone\n" * 2  # to the end of both
