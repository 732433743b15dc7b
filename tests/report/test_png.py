"""The picture of a run's curves: it opens, is not blank, and shows what the page's charts show."""

from __future__ import annotations

import io
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sailplan.errors import OutputError
from sailplan.report.gather import gather
from sailplan.report.png import png_of
from sailplan.report.record import Curve, Line, Mark, Report

BLUE, RED = (0x2F, 0x6F, 0xB8), (0xC6, 0x2F, 0x2F)


@pytest.fixture(scope="module")
def report(trained_run: Path) -> Report:
    return gather(trained_run)


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many pixels are of a colour."""
    return int((np.abs(picture - colour).sum(axis=2) < 12).sum())


def test_picture_shows_every_curve_on_white(report: Report) -> None:
    picture = pixels(png_of(report))
    assert picture.shape[:2] == (round((4 * 3.3 + 0.6) * 200), 2400)
    assert tuple(picture[0, 0]) == (255, 255, 255)
    assert count(picture, BLUE) > 5000
    assert count(picture, RED) == 0


def test_picture_shows_where_launches_went_on(report: Report) -> None:
    marks = (Mark(step=4, kind="rollback", words=""), Mark(step=8, kind="resume", words=""))
    assert count(pixels(png_of(replace(report, marks=marks))), RED) > 1000


def test_picture_of_any_names_and_many_records_is_drawn(report: Report) -> None:
    points = tuple((step, 2 + math.sin(step) + 1e6 * (step == 300)) for step in range(100_000))
    lines = (Line(name="$x^{2$ _\x1b \ud800", points=points), Line(name="_one", points=((3, 1.0),)))
    curve = Curve(name="loss", title="<b> $ % \\frac{", lines=lines)
    assert count(pixels(png_of(replace(report, name="$run$", curves=(curve,)))), BLUE) > 1000


def test_run_that_has_logged_nothing_has_no_picture(report: Report) -> None:
    with pytest.raises(OutputError, match="nothing that could be drawn; leave --png out"):
        png_of(replace(report, curves=()))


def test_picture_without_matplotlib_says_what_to_install(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OutputError, match=r"pip install 'sailplan\[report\]'"):
        png_of(report)
