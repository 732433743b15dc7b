"""A disk that is full: the run ends resumable, its old checkpoint whole, and goes on with room."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.killed import curve, launched, run_file, whole
from tests.support.plant import planted
from tests.support.rows import chat_rows

DISK_BYTES = 8 << 20
CHECKPOINT_BYTES = 1_600_000


@pytest.fixture
def disk() -> Iterator[Path]:
    """Mounts a disk of eight megabytes."""
    with tempfile.TemporaryDirectory() as name:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", name]
        mounted = subprocess.run(mount, capture_output=True, text=True)
        if mounted.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


@pytest.mark.parametrize("strategy", ["single", pytest.param("zero3", marks=pytest.mark.slow)])
def test_disk_that_fills_up_in_a_save_leaves_the_old_checkpoint_to_go_on_from(
    disk: Path, tmp_path: Path, tiny_model: Callable[[str], Path], strategy: str
) -> None:
    def of(out: Path) -> dict[str, Any]:
        return {
            "model_name_or_path": str(tiny_model("llama")),
            "dataset_name": str(chat_rows(tmp_path / "rows", 24, images=False)),
            "output_dir": str(out),
            "max_steps": 6,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 2,
            "bf16": False,
            "logging_steps": 1,
            "save_steps": 2,
            "save_total_limit": 1,
            "report_to": "none",
        }

    ranks = 1 if strategy == "single" else 2
    elsewhere = run_file(
        tmp_path / "whole.yaml", of(tmp_path / "whole"), strategy=strategy, ranks=ranks
    )
    with launched(elsewhere, "--no-preflight") as run:
        assert run.end() == 0, run.text
    file = run_file(tmp_path / "run.yaml", of(disk / "run"), strategy=strategy, ranks=ranks)
    ballast = disk / "ballast"
    fault = planted(what="fill_disk", rank=0, step=4, ballast=str(ballast), room=700_000)
    with launched(file, "--no-preflight", env=fault) as run:
        code = run.end()
        assert run.gone() == []
    assert code == 7, run.text
    assert "error: the disk is full: checkpoint-4 could not be saved" in run.text
    assert "make room and start the run again" in run.text
    assert whole(disk / "run") == [2]
    assert not (disk / "run" / "checkpoint-4").exists()

    with launched(file, "--no-preflight") as run:
        code = run.end()
    assert code == 7, run.text
    assert "checkpoint-4 takes 1.6 MB" in run.text or strategy != "single"
    assert whole(disk / "run") == [2]

    ballast.unlink()
    with launched(file, "--no-preflight") as run:
        assert run.end() == 0, run.text
    assert curve(disk / "run") == curve(tmp_path / "whole")
