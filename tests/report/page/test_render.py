"""The text of a report's page."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from sailplan.evaluate.comparison import Change, Estimate, Verdict
from sailplan.report.page.numbers import change_of, value_of
from sailplan.report.page.render import folder_images, render
from sailplan.report.page.samples import limit_of
from sailplan.report.page.verdicts import stands
from sailplan.report.record import Report
from tests.browser.nasty import comparison_of, files_in, report_of, row

SIDES = ("base", "tuned")


def small_report(**changes: object) -> Report:
    rows = [
        row(
            number,
            SIDES,
            prompt="What?",
            reference="A red star.",
            answers=["A cat.", "A red star."],
        )
        for number in range(3)
    ]
    return replace(report_of(comparison_of(SIDES, rows)), **changes)  # type: ignore[arg-type]


def test_page_allows_no_script_but_its_own() -> None:
    text = render(small_report(), images=lambda name: None)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    images = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f"{images}; script-src 'sha256-{digest}'" in text
    assert "http://" not in text
    assert "https://" not in text


def test_page_of_a_run_on_disk_holds_its_pictures(tmp_path: Path) -> None:
    text = render(small_report(), images=folder_images(files_in(tmp_path)))
    assert text.count('src="data:image/webp;base64,') == 3


def test_files_outside_the_runs_directory_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    run = tmp_path / "run"
    run.mkdir()
    (run / "link").symlink_to(tmp_path / "secret")
    read = folder_images(run)
    for name in ("../secret", str(tmp_path / "secret"), "link", "nul\0l", "", "x" * 5000):
        assert read(name) is None


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (("better", "unclear"), "better than"),
        (("worse", "worse"), "worse than"),
        (("better", "worse"), "better in some scores and worse in others than"),
        (("unclear", "unclear"), "neither clearly better nor clearly worse than"),
    ],
)
def test_verdict_is_what_the_scores_together_say(verdicts: tuple[Verdict, ...], words: str) -> None:
    comparison = small_report().comparison
    assert comparison is not None
    estimate = Estimate(value=0.1, low=0.0, high=0.2)
    scores = tuple(
        replace(
            score,
            changes={"tuned": Change(difference=estimate, p_value=0.01, verdict=verdict)},
        )
        for score, verdict in zip(comparison.scores[2:], verdicts, strict=False)
    )
    (stand,) = stands(replace(comparison, scores=scores))
    assert stand.words == words


def test_numbers_have_about_three_digits_and_shares_are_percent() -> None:
    values = (0.48712, 2.3149, 48.71, 1204.2, 0.0, -0.0001, -0.25)
    assert [value_of("loss", value) for value in values] == [
        *("0.487", "2.31", "48.7", "1,204", "0.000", "0.000", "\u22120.250"),
    ]
    assert value_of("exact_match", 0.125) == "12.5 %"
    assert value_of("mine", 0.125) == "0.125"
    assert value_of("loss", float("nan")) == "nan"


def test_changes_have_their_sign() -> None:
    assert [change_of("loss", value) for value in (0.2, 0.0, -0.2, 0.00001)] == [
        *("+0.200", "0.000", "\u22120.200", "0.000"),
    ]
    assert change_of("exact_match", 0.125) == "+12.5"


def test_verdict_weighs_each_main_score_once_and_the_users_own_first() -> None:
    comparison = small_report().comparison
    assert comparison is not None
    (stand,) = stands(comparison)
    assert stand.tiles[0].name == "colour<b>"
    assert [tile.name for tile in stand.tiles[1:]] == ["loss", "exact_match", "rouge_l"]
    assert stand.detail == "better in 3, worse in 1, unclear in 1 of 5 scores"


def test_texts_are_cut_where_all_together_would_be_a_large_file() -> None:
    assert limit_of(0) == limit_of(10) == 20_000
    assert limit_of(200) == 6_000
    assert limit_of(100_000) == 2_000
