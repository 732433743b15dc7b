"""The page that the demo wrote, as its user opens it. `make demo` says where it lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from sailplan.evaluate.comparison import read_comparison
from sailplan.run.paths import RunPaths
from tests.browser.opened import opened

VARIABLE = "SAILPLAN_DEMO_REPORT"


@pytest.fixture(scope="module")
def page_path() -> Path:
    written = os.environ.get(VARIABLE)
    if not written:
        pytest.skip(f"{VARIABLE} names no report of a demo: set it to the path that it ends with")
    return Path(written)


@pytest.mark.parametrize("width", [390, 1440])
def test_demo_page_shows_all_samples_and_asks_nobody_for_anything(
    browser: Browser, page_path: Path, artefacts: Path, width: int
) -> None:
    found = read_comparison(RunPaths(page_path.parent).comparison_file)
    assert [side.name for side in found.sides] == ["base", "qlora", "merged"]
    with opened(browser, page_path, width=width) as shown:
        page = shown.page
        assert page.locator("#list .sample").count() == len(found.rows) == 50
        pictures = page.evaluate(
            "[...document.images].map((one) => [one.complete, one.naturalWidth > 0])"
        )
        assert len(pictures) >= 50
        assert all(complete and wide for complete, wide in pictures)
        page.fill("#search", found.rows[7].reference)
        page.wait_for_function(
            "() => document.getElementById('tally').textContent !== '50 samples'"
        )
        page.fill("#search", "")
        assert page.locator("svg.chart").count() >= 5
        assert shown.faults() == []
        assert (shown.noise, shown.requests) == ([], [])
        page.screenshot(path=artefacts / f"demo-{width}.png", full_page=True)
    assert page_path.stat().st_size < 5_000_000
