"""Run directories that a real, short training has left, and what tests change in them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sailplan.run.paths import RunPaths
from tests.support import patience
from tests.support.rows import chat_rows

ELSEWHERE = "another-machine"


def run_file(folder: Path, model: Path, **values: Any) -> Path:
    """Writes a run file of a small text model that evaluates and saves every four steps."""
    written = {
        "model_name_or_path": model,
        "dataset_name": chat_rows(folder / "data", 24, images=False),
        "output_dir": folder / "run",
        "max_steps": 12,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "eval_size": 4,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "eval_generation_tokens": 8,
        "save_steps": 4,
        "logging_steps": 1,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
    } | values
    file = folder / "run file.yaml"
    file.write_text("".join(f"{name}: {value}\n" for name, value in written.items()))
    return file


def train_tiny(folder: Path, model: Path) -> Path:
    """Trains twelve steps as `sailplan train` does, and returns the run's directory."""
    file = run_file(folder, model)
    command = [sys.executable, "-m", "sailplan", "train", str(file), "--no-preflight"]
    done = patience.run(command, timeout=180)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "run"


def copy_of(run: Path, to: Path) -> RunPaths:
    """Copies a run to where a test may change it."""
    return RunPaths(Path(shutil.copytree(run, to)))


def change_state(paths: RunPaths, **values: Any) -> None:
    """Writes other values into a run's state file, as another end would have."""
    state = json.loads(paths.state_file.read_text())
    paths.state_file.write_text(json.dumps({**state, **values}))


def make_old(paths: RunPaths, time: float) -> None:
    """Lets a run's files have been written at a time."""
    for file in paths.path.rglob("*"):
        os.utime(file, (time, time))


@contextmanager
def held(lock_file: Path) -> Iterator[None]:
    """Holds a lock as a rank of another process does."""
    with lock_file.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
