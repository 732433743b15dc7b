"""Shared by all tests: offline, quiet, and subprocesses that find this tree's package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.launch import Entry, Forked

APART = (
    "browser",
    "distributed/test_hang.py",
    "distributed/test_kills.py",
    "launcher",
    "preflight/test_doctor.py",
    "slurm",
    "supervise",
    "test_first_run.py",
    "test_quick_start.py",
    "train/guards/test_hang.py",
    "train/test_requests.py",
    "train/test_stopping.py",
)
"""Folders and files whose tests kill, stop or time processes: two at most run side by side."""

ROOT = Path(__file__).resolve().parents[1]

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# As the Makefile has it: in a shared cache, environments compile over one another's operators.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
AS_INSTALLED = ROOT / "tests" / "support" / "as_installed"
os.environ["PYTHONPATH"] = os.pathsep.join(
    map(str, filter(None, [AS_INSTALLED, ROOT / "src", ROOT, os.environ.get("PYTHONPATH")]))
)
# Some thousand processes import this package: it is compiled once, not in each of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# As in an activated environment: DeepSpeed looks for ninja, and tests for accelerate, on PATH.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option that leaves out the tests that run apart, or runs nothing else."""
    parser.addoption("--apart", choices=("without", "only"), help="tests that run apart")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out the files that are not asked for, before they are imported."""
    asked = config.getoption("--apart")
    if asked is None or collection_path.is_dir():
        return None
    place = collection_path.relative_to(ROOT / "tests")
    is_apart = not {place.as_posix(), place.parts[0]}.isdisjoint(APART)
    return None if is_apart == (asked == "only") else True


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds the tiny model of a family once a session: `tiny_model("qwen2_vl")` is its folder.

    The folder is shared: a test that changes files in it copies it first.
    """
    from tests.support.tiny import build_tiny

    @cache
    def build(family: str) -> Path:
        return build_tiny(family, tmp_path_factory.mktemp("tiny") / family)

    return build


@pytest.fixture(
    scope="session", params=[3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))]
)
def zero_checkpoints(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """ZeRO checkpoints that real DeepSpeed wrote on that many ranks, a folder a case.

    The cases are those of tests/checkpoint/zero_ranks.py.
    """
    from tests.support.launch import free_port

    folder = tmp_path_factory.mktemp(f"zero-{request.param}")
    command = [sys.executable, "-m", "torch.distributed.run", "--master_port", str(free_port())]
    command += ["--nproc_per_node", str(request.param)]
    command += [str(ROOT / "tests/checkpoint/zero_ranks.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def datasets_cache(tmp_path: Path) -> Iterator[None]:
    """Keeps what `datasets` caches out of the user's folder."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        yield


@pytest.fixture(scope="session")
def trained_run(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Trains a tiny model once a session, twelve steps, as `sailplan train` does; its directory.

    The directory is shared: a test that changes it copies it first.
    """
    from tests.support.runs import train_tiny

    return train_tiny(tmp_path_factory.mktemp("trained"), tiny_model("llama"))


@pytest.fixture(scope="session")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    """Runs the entry script with the flags that it is given, in a process that all cases share."""
    from tests.support.launch import entry_script

    with entry_script(tmp_path_factory.mktemp("cache")) as run:
        yield run


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    """Runs the entry script with flags and faults, each time in a process of its own."""
    from tests.support.launch import forked_entry_script

    with forked_entry_script(tmp_path_factory.mktemp("forks")) as run:
        yield run
