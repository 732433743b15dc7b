"""What takes too long is ended, and its stacks are in the test's failure."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from tests.support.patience import run

FORKS_AND_WAITS = """
import os, threading, time

def wait_in_the_child(): time.sleep(60)
def wait_in_a_thread(): time.sleep(60)

if os.fork() == 0:
    wait_in_the_child()
threading.Thread(target=wait_in_a_thread, daemon=True).start()
print("begun", flush=True)
time.sleep(60)
"""


def test_ended_command_gives_what_it_wrote() -> None:
    done = run([sys.executable, "-c", "import sys; print(1); sys.exit('two')"], timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "1\n", "two\n")


def test_late_command_is_ended_and_the_failure_shows_the_stacks_of_all_its_processes() -> None:
    began = time.monotonic()
    with pytest.raises(pytest.fail.Exception) as failure:
        run([sys.executable, "-c", FORKS_AND_WAITS], timeout=5)

    assert time.monotonic() - began < 30
    text = str(failure.value)
    assert "not done in 5 s" in text
    assert "begun" in text
    assert "wait_in_the_child" in text
    assert "wait_in_a_thread" in text
    assert not below_this_process("wait_in_the_child")


def test_command_does_not_outlive_a_test_that_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run([sys.executable, "-c", "import time; time.sleep(61)"], timeout=50)

    assert not below_this_process("sleep(61)")


def below_this_process(word: str) -> list[psutil.Process]:
    """The processes below this one that have a word in their command."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if word in " ".join(process.cmdline())]
