"""Charts in a real browser: lines, dots and marks lie where their values are, at any width."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from sailplan.report.charts import chart
from sailplan.report.record import Curve, Line, Mark
from tests.browser.opened import opened

CURVE = Curve(
    name="loss",
    title="loss of a token",
    lines=(
        Line(name="training", points=tuple((step, 4 - step / 30) for step in range(1, 101))),
        Line(name="held out", points=((20, 3.0), (60, 1.5), (100, 2.5)), dotted=True),
    ),
)
MARKS = (Mark(step=60, kind="rollback", words="launch 2 went on from step 60"),)
CORNERS = """() => {
  const line = document.querySelectorAll("svg.chart svg path")[1];
  const matrix = line.getScreenCTM();
  return line.getAttribute("d").slice(1).trim().split(" ").map(Number)
    .reduce((all, n, i) => (i % 2 ? all.at(-1).push(n) : all.push([n]), all), [])
    .map(([x, y]) => { const at = new DOMPoint(x, y).matrixTransform(matrix); return [at.x, at.y] })
}"""
DOTS = """() => [...document.querySelectorAll("svg.chart > circle")]
  .filter((dot) => dot.firstElementChild).map((dot) => { const box = dot.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2] })"""


@pytest.mark.parametrize("width", [320, 1440])
def test_dots_lie_on_their_line_whatever_the_page_says_of_its_pictures(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    page = tmp_path / "chart.html"
    page.write_text(
        "<!doctype html><style>svg { display: block; width: 100%; height: auto }</style>"
        + chart(CURVE, MARKS)
    )
    with opened(browser, page, width=width) as found:
        corners, dots = found.page.evaluate(CORNERS), found.page.evaluate(DOTS)
        mark = found.page.locator("g.rollback line").first.bounding_box()
        letters = found.page.locator("svg.chart text").first.evaluate(
            "(text) => getComputedStyle(text).fontSize"
        )
        assert found.page.evaluate("document.documentElement.scrollWidth") == width
    assert len(dots) == 3
    for corner, dot in zip(corners, dots, strict=True):
        assert dot == pytest.approx(corner, abs=0.6)
    assert mark is not None
    assert mark["x"] == pytest.approx(dots[1][0], abs=1.0)
    assert letters == "11.5px"
