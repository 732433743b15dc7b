"""What docs/inspect.md shows is so."""

from __future__ import annotations

from pathlib import Path

import typer

from sailplan.cli.main import app
from sailplan.errors import DataError
from sailplan.inspect.findings import RULES, WARNINGS_EXIT_CODE
from sailplan.inspect.inspection import STREAM_ROWS
from sailplan.inspect.samples import KINDS
from tests.support.markdown import prose, tables

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "inspect.md"


def table_with(cell: str) -> list[list[str]]:
    return next(table for table in tables(PAGE) if cell in table[0])


def test_findings_of_the_page_are_those_of_the_code() -> None:
    assert table_with("`row-format`") == [
        [f"`{name}`", rule.severity, rule.meaning, rule.todo] for name, rule in RULES.items()
    ]


def test_options_of_the_page_are_those_of_the_verb() -> None:
    command = typer.main.get_command(app).get_command(None, "inspect")  # type: ignore[attr-defined]
    flags = {flag for option in command.params for flag in option.opts if flag.startswith("--")}
    assert {row[0].strip("`") for row in table_with("`--samples`")} == flags
    assert f"of a stream {STREAM_ROWS:,}" in " ".join(prose(PAGE).split())


def test_codes_and_kinds_of_the_page_are_those_of_the_code() -> None:
    codes = [row[0] for row in table_with("0")]
    assert codes == ["0", str(WARNINGS_EXIT_CODE), str(DataError.exit_code)]
    assert [row[0] for row in table_with("trained")] == list(KINDS)
