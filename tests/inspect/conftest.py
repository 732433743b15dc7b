"""Fixtures of the inspect tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest

from sailplan.inspect.inspection import Inspection, inspect_run
from sailplan.run.config import Run


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps what `datasets` caches out of the user's folder."""
    folder = tmp_path_factory.mktemp("datasets_cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield folder


@pytest.fixture
def inspect(tiny_model: Callable[[str], Path]) -> Callable[..., Inspection]:
    """`inspect(data, "--eval_size", "2")` inspects a run of a tiny model on that data."""

    def call(data: Path, *flags: str, family: str = "qwen2_vl", **options: object) -> Inspection:
        model = options.pop("model", None) or tiny_model(family)
        arguments = ["--model_name_or_path", str(model), "--dataset_name", str(data), *flags]
        return inspect_run(Run.from_flags(arguments), **options)  # type: ignore[arg-type]

    return call
