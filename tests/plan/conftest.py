"""Keeps what plans cache out of the user's folder."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def plan_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAILPLAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
