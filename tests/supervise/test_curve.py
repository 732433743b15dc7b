"""Curves of braille dots."""

from __future__ import annotations

import math

from sailplan.supervise.curve import Curve, draw


def drawn(points: list[tuple[float, float]], **options: object) -> Curve:
    curve = draw(points, **{"width": 8, "height": 2, **options})  # type: ignore[arg-type]  # few
    assert curve is not None
    return curve


def test_falling_line_goes_from_one_corner_to_the_other() -> None:
    curve = drawn([(0, 8.0), (15, 1.0)])
    assert curve.rows == ("⠉⠒⠤⣀    ", "    ⠉⠒⠤⣀")
    assert (curve.low, curve.high) == (1.0, 8.0)


def test_values_that_are_no_numbers_leave_a_gap_to_be_crossed() -> None:
    points = [(0, 2.0), (1, math.nan), (2, math.inf), (3, 1.0)]
    curve = drawn(points)
    assert (curve.low, curve.high) == (1.0, 2.0)


def test_many_points_are_drawn_by_their_means() -> None:
    points = [(float(n), float(n % 2)) for n in range(100_000)]
    curve = drawn(points)
    assert 0.49 < curve.low <= curve.high < 0.51


def test_one_point_and_equal_ones_are_drawn_in_the_middle() -> None:
    assert drawn([(5, 3.0)]).rows[0][0] != " " or drawn([(5, 3.0)]).rows[1][0] != " "
    assert set("".join(drawn([(0, 3.0), (9, 3.0)]).rows)) <= {"⠉", "⠒", "⠤", "⣀", " "}


def test_marks_lie_on_the_curves_scale() -> None:
    curve = drawn([(0, 4.0), (10, 3.0)], marks=[(5, 6.0), (10, 2.0), (3, math.nan)])
    assert (curve.low, curve.high) == (2.0, 6.0)
    assert curve.marks == ((0, 4), (1, 7))


def test_nothing_is_drawn_of_nothing() -> None:
    assert draw([], width=8, height=2) is None
    assert draw([(1, math.nan)], width=8, height=2) is None
    assert draw([(1, 1.0)], width=0, height=2) is None
