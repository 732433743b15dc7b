"""The legend above a chart: each line with its last value, marks, and what else is to be known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sailplan.report.record import Curve, Line, Mark, Point
from sailplan.report.scales import number
from sailplan.report.svg import DASHES, LETTER, MARK, QUIET, TEXT, colour, text

ROW = 19
"""The height of a row of it, in pixels."""

_NARROWEST = 250
"""What is written in one row fits into so many pixels, as a telephone has them."""
_SWATCH, _GAP = 22, 14
_KINDS = (("resume", "resumed"), ("rollback", "rolled back"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """One entry."""

    text: str
    value: str = ""
    """What is written behind it, to be read first."""
    colour: str = ""
    """Of a line before it; empty where the words stand alone."""
    dashes: str = ""
    dot: bool = False

    @property
    def width(self) -> float:
        """How wide it is at most, in pixels."""
        letters = len(self.text) + (len(self.value) + 1 if self.value else 0)
        return letters * LETTER + (_SWATCH if self.colour else 0)


def legend_of(
    curve: Curve,
    lines: Sequence[Line],
    marks: Sequence[Mark],
    *,
    window: int,
    beyond: Sequence[Point],
) -> list[list[Word]]:
    """Returns the rows of a legend.

    Args:
        curve: The curve.
        lines: Its lines that are drawn.
        marks: The marks that are drawn.
        window: Over how many records the mean of a line is; 0 where there is none.
        beyond: Points that lie above the chart.
    """
    return _in_rows(list(_words(curve, lines, marks, window, beyond)))


def _words(
    curve: Curve,
    lines: Sequence[Line],
    marks: Sequence[Mark],
    window: int,
    beyond: Sequence[Point],
) -> Iterator[Word]:
    for at, line in enumerate(lines):
        last = number(line.points[-1][1], share=curve.share)
        name = "last" if len(lines) == 1 and line.name == curve.title else line.name
        yield Word(text=name, value=last, colour=colour(at), dot=line.dotted)
    if window:
        yield Word(text=f"thick: mean of {window}")
    for kind, word in _KINDS:
        if any(mark.kind == kind for mark in marks):
            yield Word(text=word, colour=MARK, dashes=DASHES[kind])
    if beyond:
        most = number(max(value for _, value in beyond), share=curve.share)
        count = f"{len(beyond)} values" if len(beyond) > 1 else "1 value"
        yield Word(text=f"{count} above the chart, up to {most}")


def _in_rows(words: Sequence[Word]) -> list[list[Word]]:
    rows: list[list[Word]] = []
    used = 0.0
    for word in words:
        if not rows or used + word.width > _NARROWEST:
            rows.append([])
            used = 0.0
        rows[-1].append(word)
        used += word.width + _GAP
    return rows


def draw_legend(rows: Sequence[Sequence[Word]], left: int) -> Iterator[str]:
    """Yields the SVG of a legend.

    Args:
        rows: The legend.
        left: By how many pixels it begins left of the chart.
    """
    for place, row in enumerate(rows):
        x, y = float(-left), place * ROW + 13
        for word in row:
            at = x
            if word.colour:
                dashes = f' stroke-dasharray="{word.dashes}"' if word.dashes else ""
                yield (
                    f'<path d="M{x:.0f} {y - 4}h16" stroke="{word.colour}" stroke-width="2"'
                    f'{dashes} fill="none"/>'
                )
                at += _SWATCH
            if word.dot:
                yield f'<circle cx="{x + 8:.0f}" cy="{y - 4}" r="3.4" fill="{word.colour}"/>'
            value = f' <tspan fill="{TEXT}">{text(word.value)}</tspan>' if word.value else ""
            yield f'<text x="{at:.0f}" y="{y}" fill="{QUIET}">{text(word.text)}{value}</text>'
            x += word.width + _GAP
