"""Ranks that nobody launched go on with the global batch of their checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from sailplan.errors import RunFileError
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.train.continued import settled
from tests.launcher.support import run
from tests.support.saved import saved


def test_rank_without_a_launcher_keeps_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--output_dir", str(tmp_path / "out"), "--per_device_train_batch_size", "2"]
    wanted = Run.read_flags(flags)
    named = saved(wanted)
    monkeypatch.setenv("WORLD_SIZE", "1")
    kept = settled(wanted)
    assert kept.get("gradient_accumulation_steps") == 4
    assert kept.notes == ("global batch 8 kept: micro batch 2 × 1 rank × accumulation 4",)
    other = [*flags, "--output_dir", str(tmp_path / "new"), "--resume_from_checkpoint", str(named)]
    assert settled(Run.read_flags(other)).get("gradient_accumulation_steps") == 4
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RunFileError, match="3 ranks cannot share"):
        settled(wanted)


def test_rank_with_a_launcher_trains_what_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = run(tmp_path, "--per_device_train_batch_size", "2")
    saved(wanted)
    file = RunDirectory.of(wanted).train_file
    file.write_text(wanted.train_yaml())
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert settled(Run.read_flags(["--config", str(file)])).get("gradient_accumulation_steps") == 1
