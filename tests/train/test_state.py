"""A run that nobody has launched says of itself how it ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sailplan.run.state import RunState, read_state
from tests.support.launch import ENTRY
from tests.support.plant import planted
from tests.support.runs import run_file


def state_of(folder: Path) -> RunState:
    state = read_state(folder / "run" / "state.json")
    assert state is not None
    return state


def test_rank_that_fails_says_why(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    file = run_file(tmp_path, tiny_model("llama"), on_bad_loss="stop")
    command = [sys.executable, "-m", ENTRY, "--config", str(file)]
    env = planted(what="bad_loss", steps=[3])
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=180)
    state = state_of(tmp_path)
    assert (state.state, state.exit_code) == ("failed", done.returncode)
    assert done.returncode == 8, done.stderr
    assert done.stderr.splitlines()[-1] == f"error: {state.why}"
    assert state.launcher is None


def test_run_that_is_stopped_says_by_what(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    file = run_file(tmp_path, tiny_model("llama"), max_steps=100_000, save_strategy="no")
    command = [sys.executable, "-m", ENTRY, "--config", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith(b"step 2/100000"))
        running = state_of(tmp_path)
        assert (running.state, running.pid, running.max_steps) == ("running", process.pid, 100_000)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(60) == 75
    state = state_of(tmp_path)
    assert (state.state, state.exit_code, state.why) == ("stopped", 75, "asked by SIGTERM")
    assert state.step >= 2
