"""The record of a whole run of the matrix: no cell is missing, and nothing is refused at will."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sailplan.model import tested
from tests.matrix.cells import CELLS, Cell
from tests.matrix.record import VARIABLE, collect, note


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that cells add to."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "lines.jsonl"))
    return tmp_path / "lines.jsonl"


def test_record_has_every_cell_in_the_order_of_the_matrix(lines: Path) -> None:
    for cell in reversed(CELLS):
        note(cell, works=True, words="batching: pack")
    cells = collect(lines)["cells"]
    assert isinstance(cells, list)
    assert [(one["family"], one["method"], one["strategy"]) for one in cells] == [
        (cell.family, cell.method, cell.strategy) for cell in CELLS
    ]


@pytest.mark.parametrize("place", ["/tmp/a b/run.yaml:8: ", "--load_in_4bit: ", ""])
def test_refusal_does_not_tell_where_the_test_wrote_a_field(lines: Path, place: str) -> None:
    words = "load_in_4bit with full fine-tuning: quantised weights cannot be trained"
    note(CELLS[0], works=False, words=place + words)
    assert json.loads(lines.read_text())["words"] == words


@pytest.mark.parametrize("missing", [CELLS[0], CELLS[-1]], ids=lambda cell: cell.name)
def test_run_that_lacks_a_cell_is_refused_by_its_name(lines: Path, missing: Cell) -> None:
    for cell in CELLS:
        if cell != missing:
            note(cell, works=True, words="batching: pack")
    with pytest.raises(SystemExit, match=f"1 cells have no result: {missing.name}"):
        collect(lines)


def is_allowed(cell: tested.Tested) -> bool:
    """Says whether a cell is refused, with a reason that counts."""
    if cell.works:
        return False
    if cell.method in ("full-qlora", "full-int8"):
        return "quantised weights cannot be trained" in cell.words
    return cell.method in ("qlora", "int8") and cell.strategy == "zero3" and "shard" in cell.words


def test_recorded_refusals_are_those_that_the_matrix_allows() -> None:
    if not tested.RESULTS.is_file():
        pytest.skip("no whole run of the matrix has been recorded yet: make test-matrix")
    found = tested.results()
    assert [(one.family, one.method, one.strategy) for one in found.cells] == [
        (cell.family, cell.method, cell.strategy) for cell in CELLS
    ]
    for cell in found.cells:
        assert cell.works != is_allowed(cell), cell
        assert len(cell.words.splitlines()) == 1, cell
