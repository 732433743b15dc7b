"""`sailplan runs`: the table, its reasons, and where it looks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_main import sailplan
from tests.support.runs import change_state, copy_of


@pytest.fixture
def folder(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `runs/` that holds three runs."""
    copy_of(trained_run, tmp_path / "runs" / "good")
    failed = copy_of(trained_run, tmp_path / "runs" / "sweep" / "lr-3")
    change_state(failed, state="failed", exit_code=8, step=5, why="the loss is \x1b[31mNaN")
    stopped = copy_of(trained_run, tmp_path / "runs" / "sweep" / "lr-1")
    change_state(stopped, state="stopped", exit_code=75, step=9, why="SIGTERM came")
    copy_of(trained_run, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_of_the_folder_runs_are_listed_with_their_reasons(folder: Path) -> None:
    code, out, _ = sailplan("runs")
    assert code == 0
    rows = {words[0]: words for line in out.splitlines() if (words := line.split())}
    assert rows["good"][1:5] == ["finished", "12", "of", "12"]
    assert rows["sweep/lr-3"][1:5] == ["failed", "5", "of", "12"]
    assert "elsewhere" not in rows
    assert "stopped  sweep/lr-1: SIGTERM came" in out.splitlines()
    assert "failed  sweep/lr-3: the loss is \ufffd[31mNaN" in out.splitlines()
    assert "\x1b" not in out


def test_runs_of_a_named_folder_are_listed(folder: Path) -> None:
    (_, out, _), (_, own, _) = sailplan("runs", "."), sailplan("runs", "elsewhere")
    assert "elsewhere" in out
    assert "runs/good" in out
    assert "elsewhere" in own


def test_runs_as_json_are_all_that_is_printed(folder: Path) -> None:
    code, out, err = sailplan("runs", "--json")
    assert (code, err) == (0, "")
    found = {Path(one["path"]).name: one for one in json.loads(out)}
    assert found.keys() == {"good", "lr-1", "lr-3"}
    assert found["lr-1"]["state"] == "stopped"
    assert found["good"]["checkpoint"] == 12


def test_folder_without_runs_is_named(tmp_path: Path) -> None:
    code, out, _ = sailplan("runs", str(tmp_path))
    assert code == 0
    assert out.startswith(f"no runs in {tmp_path} and the folders in it;")
    assert sailplan("runs", str(tmp_path), "--json") == (0, "[]\n", "")


def test_folder_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    code, _, err = sailplan("runs", str(tmp_path / "none"))
    assert code == 2
    assert err == f"error: there is no folder {tmp_path}/none; name one that holds runs\n"


@pytest.mark.parametrize("columns", ["80", "120"])
def test_table_fits_the_line(folder: Path, columns: str) -> None:
    command = [sys.executable, "-m", "sailplan", "runs"]
    env = {**os.environ, "COLUMNS": columns}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    table = done.stdout.partition("failed  ")[0]
    assert "sweep/lr-3" in table
    assert max(map(len, table.splitlines())) <= int(columns)
