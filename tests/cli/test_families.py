"""`sailplan families`: the table of what works, from the results of a run of the matrix."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sailplan.cli.families_table import as_dict, markdown_table, print_families, refusals, rows
from sailplan.files import folder
from sailplan.model import tested
from sailplan.model.lineup import LINEUP
from sailplan.model.published import published
from sailplan.model.tested import Results
from tests.cli.test_main import sailplan
from tests.matrix.cells import CELLS, FAMILIES

PADDED = ("mllama", "gemma3", "molmo2", "paligemma")
QUANTISED = "quantised weights cannot be trained"
NOT_SHARDED = "ZeRO-3 would leave them whole on every rank"


def became(family: str, method: str, strategy: str) -> tuple[bool, str]:
    """Whether a cell works, and the words on it."""
    if method.startswith("full-"):
        return False, QUANTISED
    if method == "int8" and strategy == "zero3":
        return False, NOT_SHARDED
    return True, "pad" if family in PADDED else "pack"


@pytest.fixture
def found() -> Results:
    """Results such as a run of the matrix collects."""
    cells = []
    for cell in CELLS:
        works, words = became(cell.family, cell.method, cell.strategy)
        cells.append(
            tested.Tested(
                family=cell.family,
                method=cell.method,
                strategy=cell.strategy,
                works=works,
                words=words,
            )
        )
    return Results(versions={"torch": "2.13.0", "deepspeed": None}, cells=tuple(cells))


@pytest.fixture
def recorded(found: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Results]:
    """The same, where the verb reads them."""
    cells = as_dict(found)["families"]
    record = {"versions": found.versions, "cells": [c for one in cells for c in one["cells"]]}
    monkeypatch.setattr(tested, "RESULTS", tmp_path / "tested.json")
    (tmp_path / "tested.json").write_text(json.dumps(record))
    tested.results.cache_clear()
    yield found
    tested.results.cache_clear()


@pytest.fixture
def nothing_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tested, "RESULTS", tmp_path / "tested.json")
    tested.results.cache_clear()
    yield
    tested.results.cache_clear()


def test_lineup_has_the_families_of_the_matrix_in_its_order() -> None:
    assert tuple(LINEUP) == FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_member_of_the_lineup_starts_from_a_run_file_and_has_public_models(name: str) -> None:
    member = LINEUP[name]
    assert (folder("launch") / f"{member.start}.yaml").is_file()
    sizes = [known.parameters for known in map(published, member.models) if known]
    assert len(sizes) == len(member.models) > 0
    assert sizes == sorted(sizes)


def test_rows_say_what_works_and_what_does_not(found: Results) -> None:
    by_title = {row[0]: row[2:] for row in rows(found)}
    assert by_title["Qwen2-VL"] == (
        *("yes", "yes", "yes", "yes", "DDP, ZeRO-2, ZeRO-3 (not 8-bit)", "packed"),
        "qwen2_vl_7b-qlora-1x24gb",
    )
    assert by_title["Gemma-3"][:6] == ("yes", "yes", "yes", "yes", "not tried", "padded")


def test_refusal_of_some_families_names_them(found: Results) -> None:
    cells = tuple(
        replace(cell, works=False, words="why") if cell.family in PADDED else cell
        for cell in found.cells
        if cell.method == "full"
    )
    assert refusals(replace(found, cells=cells)) == [
        "full (Llama-3.2-Vision, Gemma-3, Molmo2, PaliGemma): why"
    ]


def test_refusal_is_told_once_with_its_families(found: Results) -> None:
    assert refusals(found) == [
        f"full, 4-bit weights: {QUANTISED}",
        f"full, 8-bit weights: {QUANTISED}",
        f"8-bit under ZeRO-3: {NOT_SHARDED}",
    ]


def test_verb_prints_every_family_its_run_file_and_the_reasons(recorded: Results) -> None:
    code, out, _ = sailplan("families")
    assert code == 0
    for member in LINEUP.values():
        assert member.title in out
        assert member.start in out
    assert "tried with torch 2.13.0\n" in out
    assert f"full, 4-bit weights: {QUANTISED}\n" in out


def test_verb_prints_markdown(recorded: Results) -> None:
    assert sailplan("families", "--markdown") == (0, markdown_table(recorded), "")


def test_verb_prints_every_cell_as_json(recorded: Results) -> None:
    code, out, _ = sailplan("families", "--json")
    printed = json.loads(out)
    assert code == 0
    assert printed == json.loads(json.dumps(as_dict(recorded)))
    assert sum(len(one["cells"]) for one in printed["families"]) == len(CELLS)


def test_without_results_the_verb_says_so_in_one_line(nothing_recorded: None) -> None:
    code, out, _ = sailplan("families")
    assert code == 0
    assert out.splitlines()[-1] == (
        "what works with each is not recorded yet: `make test-matrix` tries it all"
    )
    assert "qwen2_vl_7b-qlora-1x24gb" in out
    assert json.loads(sailplan("families", "--json")[1])["versions"] is None


def test_table_on_a_narrow_terminal_keeps_the_names(
    found: Results, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_families(found)
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.split("tried with")[0].splitlines())
    assert all(member.start in out for member in LINEUP.values())
