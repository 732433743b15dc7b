"""What travels in the wheel is enough to work away from the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel and unpacks it in a folder that knows nothing of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.parametrize("name", ["accelerate_configs", "launch", "slurm"])
def test_wheel_holds_every_file_of_the_folder(unpacked: Path, name: str) -> None:
    travelled = {path.name for path in (unpacked / "sailplan" / "_files" / name).glob("*")}
    assert travelled == {path.name for path in (ROOT / name).glob("*")}
    assert travelled


def test_wheel_holds_the_table_of_public_models(unpacked: Path) -> None:
    inside = Path("sailplan") / "model" / "published"
    travelled = {path.name for path in (unpacked / inside).glob("*.json")}
    assert travelled == {path.name for path in (ROOT / "src" / inside).glob("*.json")}
    assert travelled


@pytest.mark.parametrize("ending", ["css", "j2", "js"])
def test_wheel_holds_what_pages_are_made_of(unpacked: Path, ending: str) -> None:
    here, travelled = ROOT / "src" / "sailplan", unpacked / "sailplan"
    names = {path.relative_to(here) for path in here.rglob(f"*.{ending}")}
    assert {path.relative_to(travelled) for path in travelled.rglob(f"*.{ending}")} >= names
    assert names


def test_wheel_away_from_the_repository_shows_a_run_of_its_own(unpacked: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sailplan", "train", "qwen2_vl_7b-qlora-1x24gb", "--dry-run"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=unpacked.parent,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accelerate launch" in done.stdout
    assert str(ROOT) not in done.stdout
