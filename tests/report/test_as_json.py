"""A report as JSON: all of its numbers, by stable names, and nothing that is no JSON."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from sailplan.records import from_json
from sailplan.report.as_json import as_json, text_of_json
from sailplan.report.gather import gather
from sailplan.report.record import Curve, Report
from tests.report.test_gather import COMPARISON, SPLIT


@pytest.fixture
def report(trained_run: Path) -> Report:
    return replace(gather(trained_run), comparison=COMPARISON, splits=(SPLIT,))


def refuse(word: str) -> Any:
    raise AssertionError(word)


def test_json_has_every_part_by_its_name(report: Report) -> None:
    found = json.loads(text_of_json(report), parse_constant=refuse)
    assert [*found] == [field.name for field in fields(Report)]
    assert found["facts"]["method"]["method"] == "full fine-tuning"
    assert found["splits"][0]["quantiles"][1] == ["median", 50]
    assert found["comparison"]["scores"][0]["changes"]["tuned"]["verdict"] == "unclear"


def test_curves_come_back_as_they_were(report: Report) -> None:
    found = json.loads(text_of_json(report))
    assert tuple(from_json(Curve, curve) for curve in found["curves"]) == report.curves


def test_value_that_is_no_number_is_null(report: Report) -> None:
    generation = {"temperature": float("nan"), "top_p": float("inf")}
    changed = replace(report, comparison=replace(COMPARISON, generation=generation))
    found = json.loads(text_of_json(changed), parse_constant=refuse)
    assert found["comparison"]["generation"] == {"temperature": None, "top_p": None}


def test_text_that_is_none_is_still_json(report: Report) -> None:
    text = text_of_json(replace(report, why='half a pair \ud83d, "quotes", \x00'))
    text.encode()
    assert json.loads(text)["why"] == 'half a pair ?, "quotes", \x00'
    assert as_json(report)["why"] == ""
