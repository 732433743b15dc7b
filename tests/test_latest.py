"""What is told of newer versions: which they are, and which tests they broke."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from tests.latest import drift, pinned, run_tests, table

TESTS = """
import pytest


@pytest.fixture
def broken():
    raise RuntimeError("no set-up")


@pytest.mark.parametrize("family", ["llama", "qwen2_vl"])
def test_cell(family):
    assert family == "llama", "another loss\\nand more lines"


def test_set_up(broken):
    pass
"""


def test_tested_versions_are_those_of_the_constraints() -> None:
    tested = pinned()

    assert {"torch", "torchvision", "transformers", "trl", "pytest-xdist"} <= tested.keys()
    assert all(found and "#" not in found for found in tested.values())


def test_drift_is_what_is_installed_in_another_version() -> None:
    tested = {"torch": version("torch"), "peft": "0.0.1", "of-no-such-name": "1.0"}

    assert drift(tested) == [("peft", "0.0.1", version("peft"))]


def test_broken_tests_are_told_with_the_first_line_of_why(tmp_path: Path) -> None:
    file = tmp_path / "test_cells.py"
    file.write_text(TESTS)

    code, broken = run_tests([str(file), "-q", "-p", "no:cacheprovider"])

    assert code == 1
    (cell, why), (set_up, reason) = broken
    assert cell.endswith("test_cell[qwen2_vl]")
    assert why == "AssertionError: another loss"
    assert set_up.endswith("test_set_up")
    assert reason == 'failed on setup with "RuntimeError: no set-up"'
    lines = table(("broken", "why"), broken).splitlines()
    assert lines[0].index("why") == lines[1].index("AssertionError")


def test_tests_that_cannot_be_read_are_broken_as_well(tmp_path: Path) -> None:
    file = tmp_path / "test_cells.py"
    file.write_text("import of_no_such_name\n")

    code, broken = run_tests([str(file), "-q", "-p", "no:cacheprovider"])

    assert code == 2
    assert [why for _, why in broken] == ["collection failure"]
