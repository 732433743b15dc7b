"""Waits for a process no longer than a test may, and then shows where all that it started stand."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil
import pytest

from tests.support.as_installed.sitecustomize import SHOW_STACKS

_WRITING_S = 2.0
"""How long processes have to write their stacks."""


def run(
    command: Sequence[str], *, timeout: float, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, as `subprocess.run` does that captures text.

    After `timeout` seconds it is ended with all that it has started, and the test fails with the
    stack of each Python process.
    """
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            started = _signal_all(process.pid, SHOW_STACKS)
            time.sleep(_WRITING_S)
            _signal_all(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            late = f"not done in {timeout} s\n" + "\n".join(started)
            pytest.fail(f"{late}\n\n{out[-3000:]}\n\n{err[-20000:]}")
        except BaseException:  # the test's own limit, or Ctrl-C
            _signal_all(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _signal_all(pid: int, number: int) -> list[str]:
    """Sends a process and all below it a signal; returns what they are."""
    top = psutil.Process(pid)
    told = []
    for process in (top, *top.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            told.append(f"{process.pid} of {process.ppid()}: {' '.join(process.cmdline())[:200]}")
            process.send_signal(number)
    return told
