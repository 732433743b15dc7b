"""The table of a comparison, wide and narrow."""

from __future__ import annotations

import pytest

from sailplan.cli.compare_table import print_comparison
from sailplan.evaluate.comparison import Change, Comparison, Estimate, Score, Side

BASE = Estimate(value=0.25, low=0.1, high=0.4)
TUNED = Estimate(value=0.75, low=0.6, high=0.9)


def comparison(*tuned: str) -> Comparison:
    change = Change(
        difference=Estimate(value=0.5, low=0.4, high=0.6), p_value=0.001, verdict="better"
    )
    score = Score(
        name="exact_match",
        better="higher",
        num_rows=50,
        sides={"base": BASE, **dict.fromkeys(tuned, TUNED)},
        changes=dict.fromkeys(tuned, change),
    )
    return Comparison(
        sides=tuple(Side(name=name, model="a/b") for name in ("base", *tuned)),
        rows=(),
        scores=(score,),
        split="eval",
        num_held_out=256,
        num_loss_rows=0,
        generation={},
        made_at=0.0,
    )


def lines(capsys: pytest.CaptureFixture[str], *tuned: str) -> list[str]:
    print_comparison(comparison(*tuned))
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_table_has_values_change_interval_and_verdict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    shown = lines(capsys, "tuned")
    assert "exact match 25.0% 75.0% +50.0% [40.0%, 60.0%] better" in shown
    assert any("brackets: 95 % intervals" in line for line in shown)


def test_narrow_table_leaves_the_intervals_to_the_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    shown = lines(capsys, "tuned", "merged")
    assert "exact match 25.0% 75.0% 75.0% +50.0% better +50.0% better" in shown
    assert not any("brackets" in line for line in shown)


def test_base_alone_has_no_changes(capsys: pytest.CaptureFixture[str]) -> None:
    assert "exact match 25.0%" in lines(capsys)


def test_name_that_would_steer_the_terminal_is_shown_as_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not any("\x1b" in line for line in lines(capsys, "\x1b[31mred"))
