"""`sailplan watch` on real terminals and without: follows a run until it ends, or one leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sailplan.run.paths import RunPaths
from sailplan.run.state import ended
from tests.cli.test_main import sailplan
from tests.support.launch import ENTRY
from tests.support.runs import change_state, copy_of, run_file
from tests.support.terminal import on_terminal

WATCH = [sys.executable, "-m", "sailplan", "watch"]


@pytest.fixture
def running(trained_run: Path, tmp_path: Path) -> RunPaths:
    """A run of this process that has just logged its third step."""
    paths = copy_of(trained_run, tmp_path / "my-run")
    lines = [line for line in paths.metrics_file.read_text().splitlines() if '"loss"' in line]
    paths.metrics_file.write_text("\n".join(lines[:3]) + "\n")
    times = {"started_at": time.time(), "updated_at": time.time()}
    change_state(paths, state="running", exit_code=None, pid=os.getpid(), step=3, **times)
    return paths


def log(paths: RunPaths, step: int, **values: float) -> None:
    """Logs a record as the trainer does."""
    record = {"step": step, **values, "time": time.time()}
    with paths.metrics_file.open("a") as file:
        file.write(json.dumps(record) + "\n")


def test_terminal_follows_a_run_as_it_grows_until_it_ends(running: RunPaths) -> None:
    with on_terminal([*WATCH, str(running.path)]) as terminal:
        terminal.read_until("q leaves, the run goes on")
        assert "my-run  running" in terminal.text
        assert "step 3 of 12" in terminal.text
        assert not terminal.is_echoing
        log(running, 4, loss=7.125)
        terminal.read_until("loss 7.125")
        ended(running, 75, "SIGTERM came")
        assert terminal.end() == 0
        last = terminal.text.rstrip().splitlines()
    assert "my-run  stopped" in terminal.text
    assert last[-1].startswith("stopped at step 3 of 12: SIGTERM came; `sailplan train ")
    assert terminal.raw.count("\x1b[?1049h") == terminal.raw.count("\x1b[?1049l") == 1
    assert terminal.raw.count("\x1b[?25l") == terminal.raw.count("\x1b[?25h")


@pytest.mark.parametrize("key", ["q", "\x03"], ids=["q", "Ctrl-C"])
def test_key_leaves_the_run_as_it_is(running: RunPaths, key: str) -> None:
    before = running.state_file.read_bytes()
    with on_terminal([*WATCH, str(running.path)]) as terminal:
        terminal.read_until("q leaves")
        terminal.type(f"x{key}")
        terminal.read_until("the run goes on (running")
        assert terminal.is_echoing
        assert terminal.end() == 0
    assert running.state_file.read_bytes() == before


def test_killed_watch_leaves_the_terminal_as_it_was(running: RunPaths) -> None:
    with on_terminal([*WATCH, str(running.path)]) as terminal:
        terminal.read_until("q leaves")
        terminal.process.terminate()
        assert terminal.end() == 128 + signal.SIGTERM
        assert terminal.raw.count("\x1b[?1049h") == terminal.raw.count("\x1b[?1049l") == 1


@pytest.mark.parametrize("height", [10, 18, 60])
def test_picture_fits_the_terminal(running: RunPaths, height: int) -> None:
    running.logs.mkdir(exist_ok=True)
    (running.logs / "rank-0.log").write_text("\n".join(f"line {n}" for n in range(50)) + "\n")
    with on_terminal([*WATCH, str(running.path)], width=90, height=height) as terminal:
        picture = terminal.read_until("q leaves")
    lines = picture.splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= 90
    assert ("┤" in picture) == (height > 10)
    assert ("line 49" in picture) == (height > 18)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_picture_of_once_fits_the_line(trained_run: Path, columns: int) -> None:
    env = {**os.environ, "COLUMNS": str(columns)}
    command = [*WATCH, str(trained_run), "--once"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("run  finished  single")
    assert max(map(len, lines)) <= columns
    assert "step 12 is whole" in done.stdout
    assert done.stdout.count("◆") == 4  # three evaluations on the curve, and what they are


def test_ranks_are_shown_by_what_they_do(running: RunPaths) -> None:
    running.beats.mkdir()
    for rank in range(6):
        beat = {"rank": rank, "step": 3, "phase": "saving", "moved_at": time.time() - 60 * rank}
        (running.beats / f"rank-{rank}.json").write_text(json.dumps(beat))
    (running.beats / "rank-9.json").write_text("{broken")
    _, out, _ = sailplan("watch", str(running.path), "--once")
    assert "5  step 3  saving for 5 min" in out
    assert "1  step 3" not in out
    assert "and 2 more" in out


def test_each_record_is_a_line_without_a_terminal(running: RunPaths) -> None:
    command = [*WATCH, str(running.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: Iterator[str] = iter(process.stdout)
        assert next(lines) == "my-run: running\n"
        for step in (1, 2, 3):
            assert next(lines).startswith(f"step {step}/12  loss ")
        log(running, 4, loss=7.125, grad_norm=2.5)
        assert next(lines) == "step 4/12  loss 7.125  gradient norm 2.5\n"
        log(running, 4, eval_loss=6.5)
        assert next(lines) == "step 4/12  held out: loss 6.5\n"
        ended(running, 8, "the loss is NaN")
        assert next(lines).startswith("failed at step 3 of 12: the loss is NaN; `sailplan train ")
        assert process.wait(60) == 0


def test_run_is_found_by_its_file_and_by_its_name(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = sailplan("watch", str(trained_run.parent / "run file.yaml"))
    assert code == 0
    assert out.splitlines()[-1] == "finished at step 12 of 12"
    copy_of(trained_run, tmp_path / "runs" / "sweep" / "one")
    monkeypatch.chdir(tmp_path)
    assert sailplan("watch", "sweep/one")[1] == out
    code, _, err = sailplan("watch", "sweep/two")
    assert code == 2
    assert err.startswith("error: there is no run file 'sweep/two'")


def test_real_run_is_followed_until_it_is_killed(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    file = run_file(tmp_path, tiny_model("llama"), max_steps=100_000, save_steps=50_000)
    command = [sys.executable, "-m", ENTRY, "--config", str(file)]
    with (
        on_terminal([*WATCH, str(file)]) as terminal,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process,
    ):
        terminal.read_until("run  running", timeout=120)
        terminal.read_until("left")
        terminal.read_until("◆ held out")
        process.kill()
        process.wait()
        assert terminal.end() == 0
    assert f"process {process.pid} is gone" in terminal.text
    assert terminal.text.rstrip().endswith("goes on")
    assert "killed" in sailplan("runs", str(tmp_path))[1]
