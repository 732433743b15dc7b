"""The commit that a run is launched from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sailplan.launcher.commit import commit_of

LIMIT_S = 30.0


def git(folder: Path, *arguments: str) -> str:
    named = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *named, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "run.yaml").write_text("max_steps: 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "First")
    return tmp_path


def test_commit_is_that_of_the_repository_around_a_folder(repository: Path) -> None:
    folder = repository / "below"
    folder.mkdir()
    head = git(repository, "rev-parse", "HEAD")
    assert commit_of(folder, time_limit_s=LIMIT_S) == {"hash": head, "dirty": False}


def test_changes_of_tracked_files_alone_make_it_dirty(repository: Path) -> None:
    (repository / "notes.txt").write_text("not tracked")
    clean = commit_of(repository, time_limit_s=LIMIT_S)
    (repository / "run.yaml").write_text("max_steps: 2\n")
    changed = commit_of(repository, time_limit_s=LIMIT_S)

    assert clean is not None
    assert changed == {**clean, "dirty": True}
    assert not clean["dirty"]


def test_there_is_none_without_a_repository_a_commit_or_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit_of(tmp_path, time_limit_s=LIMIT_S) is None
    git(tmp_path, "init", "-q")
    assert commit_of(tmp_path, time_limit_s=LIMIT_S) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(tmp_path, time_limit_s=LIMIT_S) is None


def test_git_that_hangs_is_not_waited_for(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:/usr/bin:/bin")
    assert commit_of(repository, time_limit_s=0.1) is None


def test_programs_that_a_repository_names_are_not_run(repository: Path) -> None:
    git(repository, "config", "core.fsmonitor", f"touch {repository / 'ran'}; false")
    assert commit_of(repository, time_limit_s=LIMIT_S) is not None
    assert not (repository / "ran").exists()
