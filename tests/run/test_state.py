"""What a run says of itself: written whole, read or not there, and how it ends."""

from __future__ import annotations

import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from sailplan.run.paths import RunPaths
from sailplan.run.state import MAX_WHY, RunState, ended, read_state, starting, write_state

RUNNING = RunState(
    state="running",
    step=3,
    max_steps=10,
    pid=17,
    host="node1",
    started_at=1000.0,
    updated_at=1010.5,
)


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """A run that runs."""
    paths = RunPaths(tmp_path)
    write_state(paths.state_file, RUNNING)
    return paths


def after(paths: RunPaths) -> RunState:
    state = read_state(paths.state_file)
    assert state is not None
    return state


def test_state_that_was_written_is_read(paths: RunPaths) -> None:
    assert read_state(paths.state_file) == RUNNING
    assert [entry.name for entry in paths.path.iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"state": "asleep"},
        {"step": "3"},
        {"step": True},
        {"max_steps": None},
        {"why": None},
        {"pid": 1.5},
        {"host": 5},
        {"updated_at": "yesterday"},
        {"exit_code": "0"},
        {"launcher": "1"},
    ],
    ids=str,
)
def test_state_with_a_wrong_value_reads_as_none(paths: RunPaths, change: dict[str, object]) -> None:
    written = json.loads(paths.state_file.read_text())
    paths.state_file.write_text(json.dumps({**written, **change}))
    assert read_state(paths.state_file) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '"running"', "\x00\xff", "[" * 100_000], ids=range(8)
)
def test_broken_state_file_reads_as_none(paths: RunPaths, text: str) -> None:
    paths.state_file.write_text(text, encoding="latin-1")
    assert read_state(paths.state_file) is None


def test_missing_state_file_reads_as_none(tmp_path: Path) -> None:
    assert read_state(tmp_path / "state.json") is None
    assert read_state(tmp_path) is None


@pytest.mark.parametrize(
    ("code", "state"), [(0, "finished"), (75, "stopped"), (8, "failed"), (137, "failed")]
)
def test_end_is_named_by_its_exit_code(paths: RunPaths, code: int, state: str) -> None:
    ended(paths, code, "the\n  reason")
    end = after(paths)
    assert (end.state, end.exit_code, end.why, end.step) == (state, code, "the reason", 3)
    assert end.updated_at > RUNNING.updated_at


def test_launcher_without_words_keeps_what_the_rank_said(paths: RunPaths) -> None:
    ended(paths, 8, "the loss is NaN")
    ended(paths, 1)
    assert (after(paths).why, after(paths).exit_code) == ("the loss is NaN", 1)
    ended(paths, 1, "rank 1: the loss is NaN")
    assert after(paths).why == "rank 1: the loss is NaN"


def test_reason_of_an_earlier_end_is_not_kept_for_another(paths: RunPaths) -> None:
    ended(paths, 75, "SIGTERM")
    ended(paths, 0)
    assert (after(paths).state, after(paths).why) == ("finished", "")


def test_reason_that_was_known_while_running_is_kept(paths: RunPaths) -> None:
    write_state(paths.state_file, replace(RUNNING, why="the loss did not fall any more"))
    ended(paths, 0)
    assert after(paths).why == "the loss did not fall any more"


def test_start_keeps_how_far_the_run_was(paths: RunPaths) -> None:
    state = starting(paths, "again")
    assert (state.state, state.step, state.max_steps, state.why) == ("starting", 3, 10, "again")
    assert state.pid == state.launcher == os.getpid()
    write_state(paths.state_file, state)
    assert starting(paths).why == "again"
    ended(paths, 5)
    assert (after(paths).state, after(paths).why) == ("failed", "again")


def test_start_of_a_new_run_knows_no_steps(tmp_path: Path) -> None:
    state = starting(RunPaths(tmp_path))
    assert (state.step, state.max_steps) == (0, 0)


def test_end_of_a_run_that_never_trained_leaves_nothing(tmp_path: Path) -> None:
    ended(RunPaths(tmp_path), 8, "no model")
    assert not list(tmp_path.iterdir())


def test_end_that_cannot_be_written_does_not_raise(paths: RunPaths) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # as if the disk were full
    try:
        ended(paths, 8, "no space")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_state(paths.state_file) == RUNNING


def test_long_reason_is_cut(paths: RunPaths) -> None:
    ended(paths, 1, "x" * 10 * MAX_WHY)
    assert len(after(paths).why) == MAX_WHY
