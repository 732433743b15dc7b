"""`sailplan cancel` on runs of this machine: saved and stopped, or ended at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sailplan.checkpoint.layout import quick_latest
from sailplan.run.paths import RunPaths
from sailplan.supervise.runs import look_at
from tests.cli.test_main import sailplan
from tests.support.runs import ELSEWHERE, change_state, copy_of, run_file


@contextmanager
def training(folder: Path, model: Path) -> Iterator[tuple[RunPaths, subprocess.Popen[bytes]]]:
    """A run of this machine that trains for long, and its launcher."""
    file = run_file(folder, model, max_steps=100_000, save_steps=50_000)
    command = [sys.executable, "-m", "sailplan", "train", str(file), "--no-preflight"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        paths = RunPaths(folder / "run")
        try:
            while process.poll() is None and (look_at(paths.path).step or 0) < 2:
                pass
            yield paths, process
        finally:
            process.terminate()


def test_run_saves_and_stops_and_is_cancelled_once(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    with training(tmp_path, tiny_model("llama")) as (paths, process):
        code, out, _ = sailplan("cancel", str(paths.path), "--wait")
        assert code == 0
        first, again, last = out.splitlines()
        assert first == f"the run is asked to save and to stop ({paths.stop_file})"
        assert again == f"`sailplan train {paths.path}` goes on with the run"
        assert last.startswith("stopped at step ")
        assert process.wait(60) == 75
    one = look_at(paths.path)
    whole = quick_latest(paths.checkpoints())
    assert whole == paths.checkpoint(one.step or 0)
    code, out, _ = sailplan("cancel", str(paths.path))
    assert code == 0
    assert out.startswith("there is nothing to cancel: stopped at step ")
    assert not paths.stop_file.exists()


@pytest.mark.slow
def test_run_is_ended_at_once(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    with training(tmp_path, tiny_model("llama")) as (paths, process):
        _, out, _ = sailplan("cancel", str(paths.path), "--now", "--wait")
        assert out.startswith(f"had process {process.pid}, its launcher, kill the ranks\n")
        assert process.wait(60) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    one = look_at(paths.path)
    assert one.state in ("failed", "killed")
    # The first step's checkpoint may have been there before.
    assert quick_latest(paths.checkpoints()) in (None, paths.checkpoint(1))


def test_run_elsewhere_is_asked_and_cannot_be_killed_from_here(
    trained_run: Path, tmp_path: Path
) -> None:
    paths = copy_of(trained_run, tmp_path / "run")
    now = time.time()
    change_state(paths, state="running", host=ELSEWHERE, updated_at=now, started_at=now)
    code, _, err = sailplan("cancel", str(paths.path), "--now")
    assert code == 7
    assert err == (
        f"error: the run's processes are on {ELSEWHERE}; call it there, or "
        f"`touch {paths.stop_file}` to have it save and stop\n"
    )
    assert sailplan("cancel", str(paths.path))[0] == 0
    assert paths.stop_file.exists()
    assert "had been asked" in sailplan("cancel", str(paths.path))[1]
