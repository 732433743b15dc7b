"""Charts: what is to be seen of a curve, whatever its length, its values and its names."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from sailplan.report.charts import chart
from sailplan.report.points import COLUMNS, highest_in_sight, smoothed, thinned
from sailplan.report.record import Curve, Line, Mark, Point
from sailplan.report.scales import number, step_scale, value_scale

EVIL = "</title></svg><script>alert('1')</script> & \"q\" \x00\x1b[2J\ud800\u202e\ufffe"


def curve(*lines: Line, title: str = "loss", share: bool = False) -> Curve:
    return Curve(name="loss", title=title, lines=lines, share=share)


def line(points: list[Point], name: str = "training", dotted: bool = False) -> Line:
    return Line(name=name, points=tuple(points), dotted=dotted)


def noisy(count: int) -> list[Point]:
    chance = random.Random(0)
    return [(step, 2 + 50 / (50 + step) + chance.gauss(0, 0.2)) for step in range(1, count + 1)]


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def titles(svg: str) -> list[str]:
    return [title.text or "" for title in drawn(svg).iter("title")]


def texts(svg: str) -> list[str]:
    return ["".join(found.itertext()) for found in drawn(svg).iter("text")]


def paths(svg: str) -> list[list[tuple[float, float]]]:
    """The points of all lines of a chart."""
    inner = drawn(svg).find("svg")
    assert inner is not None
    numbers = [re.findall(r"[\d.-]+", path.attrib["d"]) for path in inner.iter("path")]
    return [list(zip(map(float, n[::2]), map(float, n[1::2]), strict=True)) for n in numbers]


def test_line_of_many_records_is_thinned_out_and_keeps_its_extremes() -> None:
    points: list[Point] = [(step, 1.0 + step % 7 / 100) for step in range(100_000)]
    points[12_345], points[77_777] = (12_345, 3.0), (77_777, 0.5)

    found = thinned(points)

    assert len(found) <= 4 * COLUMNS <= 1000
    assert {(12_345, 3.0), (77_777, 0.5), points[0], points[-1]} <= {*found}
    assert all(before[0] < after[0] for before, after in pairwise(found))


def test_chart_of_many_records_is_small() -> None:
    svg = chart(curve(line(noisy(100_000))), [])

    assert all(len(path) <= 4 * COLUMNS for path in paths(svg))
    assert len(svg) < 60_000


def test_short_line_keeps_every_point() -> None:
    points = noisy(30)
    assert thinned(points) == points
    assert len(paths(chart(curve(line(points)), []))[0]) == 30


def test_chart_holds_no_foreign_markup() -> None:
    seldom = line([(1, 1.0), (2, 2.0)], name=EVIL, dotted=True)
    mark = Mark(step=1, kind="rollback", words=EVIL)

    svg = chart(curve(line(noisy(60), name=EVIL), seldom, title=EVIL), [mark])

    known = {"svg", "path", "line", "text", "tspan", "circle", "rect", "g", "title"}
    assert {element.tag for element in drawn(svg).iter()} == known
    assert not [
        name for element in drawn(svg).iter() for name in element.attrib if name[:2] == "on"
    ]
    assert any("<script>alert('1')</script> & \"q\"" in title for title in titles(svg))
    svg.encode()


def test_chart_of_nothing_says_so() -> None:
    assert texts(chart(curve(line([]), title="loss <b>"), [])) == ["loss <b>: nothing was recorded"]


def test_chart_of_one_value_shows_a_dot() -> None:
    svg = chart(curve(line([(10, 0.5)])), [])
    assert "step 10: training 0.5" in titles(svg)
    assert len(list(drawn(svg).iter("circle"))) == 1


def test_dotted_line_says_each_value() -> None:
    seldom = line([(50, 0.7), (100, 0.8)], name="held out", dotted=True)
    svg = chart(curve(seldom, share=True), [])
    assert {"step 50: held out 70.0%", "step 100: held out 80.0%"} <= {*titles(svg)}
    assert {"70.0%", "80.0%"} <= {*texts(svg)}
    assert "held out 80.0%" in texts(svg)  # the legend says the last value


def test_place_on_the_chart_says_what_is_known_there() -> None:
    svg = chart(curve(line([(1, 3.0), (2, 2.0)]), line([(2, 2.5)], name="held out")), [])
    assert "step 2\ntraining 2\nheld out 2.5" in titles(svg)


def test_marks_are_shown_where_they_lie_on_the_chart() -> None:
    marks = [
        Mark(step=40, kind="rollback", words="launch 2 went on from step 40"),
        Mark(step=80, kind="resume", words="launch 3 went on from step 80"),
        Mark(step=4000, kind="resume", words="of another life"),
    ]
    svg = chart(curve(line(noisy(100))), marks)

    groups = {group.attrib["class"]: group for group in drawn(svg).iter("g")}
    assert {*groups} == {"rollback", "resume"}
    assert groups["rollback"].findtext("title") == "launch 2 went on from step 40"
    assert groups["rollback"].find("line").attrib["x1"] == "40.00%"  # type: ignore[union-attr]
    assert {"resumed", "rolled back"} <= {*texts(svg)}


def test_noisy_line_is_drawn_behind_its_mean() -> None:
    svg = chart(curve(line(noisy(400))), [])
    faint, mean = paths(svg)
    assert len(faint) == len(mean) == 400
    moves = [sum(abs(b - a) for (_, a), (_, b) in pairwise(path)) for path in (faint, mean)]
    assert moves[1] < moves[0] / 3
    assert "thick: mean of 11" in texts(svg)


def test_smooth_line_is_drawn_as_it_is() -> None:
    points: list[Point] = [(step, 1 / step) for step in range(1, 400)]
    assert smoothed(points, 1.0) is None


def test_mean_neither_lags_nor_leaves_the_line() -> None:
    points: list[Point] = [(step, float(step + step % 2 * 30)) for step in range(200)]
    means, window = smoothed(points, 1e9)  # type: ignore[misc]
    assert means[0] == points[0]
    assert all(abs(value - (step + 15)) <= 15 / window + 1e-9 for step, value in means[20:-20])


def test_value_that_would_press_others_flat_lies_above_the_chart_which_says_so() -> None:
    points = noisy(200)
    points[99] = (100, 900.0)

    svg = chart(curve(line(points)), [])

    assert "1 value above the chart, up to 900" in texts(svg)
    assert "900" not in texts(svg)  # the axis ends below
    assert any("900" in title for title in titles(svg))
    assert highest_in_sight([1.0, 2.0, 900.0]) == 900.0  # so few are all shown


def test_line_in_words_is_there_for_who_does_not_see_it() -> None:
    found = drawn(chart(curve(line([(1, 3.0), (9, 2.0), (10, 2.5)]), title="loss of a token"), []))
    assert found.attrib["role"] == "img"
    assert found.attrib["aria-label"] == (
        "loss of a token; training: 3 at step 1, 2.5 at step 10; all in all 2 to 3"
    )


def test_letters_are_not_scaled_with_the_chart() -> None:
    found = drawn(chart(curve(line(noisy(50))), []))
    assert "viewBox" not in found.attrib
    assert "width:100%" in found.attrib["style"]


@pytest.mark.parametrize(
    ("low", "high", "share", "written"),
    [
        (0.41, 2.9, False, ["0", "1", "2", "3"]),
        (0.0, 2e-4, False, ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]),
        (22_000.0, 24_000.0, False, ["22,000", "22,500", "23,000", "23,500", "24,000"]),
        (0.0, 3e6, False, ["0", "1M", "2M", "3M"]),
        (0.0, 0.064, True, ["0%", "2%", "4%", "6%", "8%"]),
        (0.62, 0.85, True, ["60%", "70%", "80%", "90%"]),
        (1.0, 1.0, False, ["0.50", "0.75", "1.00", "1.25", "1.50"]),
        (0.0, 0.0, True, ["0%", "2%", "4%", "6%"]),
        (-1.0, 1.0, False, ["-1.0", "-0.5", "0", "0.5", "1.0"]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, share: bool, written: list[str]) -> None:
    scale = value_scale(low, high, share=share)
    assert [scale.write(tick) for tick in scale.ticks] == written
    assert scale.low <= low <= high <= scale.high


@pytest.mark.parametrize(
    ("first", "last", "written"),
    [
        (1, 12, ["0", "3", "6", "9", "12"]),
        (1, 1, ["0", "1"]),
        (4, 12, ["0", "3", "6", "9", "12"]),
        (5000, 6000, ["5,000", "5,200", "5,400", "5,600", "5,800", "6,000"]),
        (1, 99_000, ["0", "20k", "40k", "60k", "80k"]),
    ],
)
def test_steps_are_whole_and_round(first: int, last: int, written: list[str]) -> None:
    scale = step_scale(first, last)
    assert [scale.write(tick) for tick in scale.ticks] == written


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.71049, "0.7105"), (2e-4, "2e-4"), (22_612.3, "22,612"), (1.25e7, "12.5M"), (0.0, "0")],
)
def test_numbers_are_written_in_a_few_digits(value: float, written: str) -> None:
    assert number(value) == written
