"""Fixtures of the data tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest

from sailplan.run.config import Run


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps what `datasets` caches out of the user's folder."""
    folder = tmp_path_factory.mktemp("datasets_cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield folder


@pytest.fixture
def run_on() -> Callable[..., Run]:
    """`run_on(path, "--eval_size", "2")` is a run on that data."""

    def build(data: object, *flags: str) -> Run:
        return Run.from_flags(["--dataset_name", str(data), *flags])

    return build
