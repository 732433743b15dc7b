"""docs/models.md is what its program writes."""

from __future__ import annotations

import re

import pytest

from sailplan.cli.families_table import markdown_table
from sailplan.model.lineup import LINEUP
from sailplan.model.tested import results
from tests.matrix import page, planned

TEXT = page.PAGE.read_text(encoding="utf-8")
QUICK = ("llava", "mllama", "gemma3_text")
"""Families whose sections are made anew in a few seconds."""


def of_page(title: str) -> str:
    """The section of a family, as the page has it."""
    found = re.search(rf"\n## {re.escape(title)}\n.*?(?=\n## |\Z)", TEXT, re.DOTALL)
    assert found, title
    return found[0]


def test_head_of_the_page_is_what_its_program_writes() -> None:
    assert TEXT.startswith(page.HEAD + markdown_table(results()) + page.BELOW)
    titles = re.findall(r"^## (.*)$", TEXT.removeprefix(page.HEAD), re.MULTILINE)
    assert titles[1:] == [member.title for member in LINEUP.values()]


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in LINEUP],
)
def test_section_of_the_page_is_what_its_program_writes(name: str) -> None:
    assert of_page(LINEUP[name].title) == page.section(name, results(), page.written(TEXT))


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=() if "0.6B" in model else pytest.mark.slow)
        for member in LINEUP.values()
        for model in member.models
    ],
)
def test_memory_on_the_page_is_what_plans_say(model: str) -> None:
    assert page.written(TEXT)(model) == planned.memory(model)


@pytest.mark.parametrize("name", LINEUP)
def test_models_of_the_lineup_are_of_their_family(name: str) -> None:
    for model in LINEUP[name].models:
        assert planned.member_of(model) == name
