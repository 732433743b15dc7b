"""Curves as pictures inside a page: SVG that is as wide as its place, its letters never scaled.

The lines lie in a picture of their own that is stretched to the width there is. Text, dots and
marks lie beside it, at parts of that width, so that they look alike on a telephone and on a wall.
Colours are the page's variables: `--c0` to `--c3` of lines, `--text`, `--quiet`, `--line`,
`--mark`. There is no script: what is known at a place is its tooltip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sailplan.report.legend import ROW, draw_legend, legend_of
from sailplan.report.points import column_of, highest_in_sight, smoothed, thinned
from sailplan.report.record import Curve, Line, Mark, Point
from sailplan.report.scales import Scale, number, step_scale, value_scale
from sailplan.report.svg import DASHES, FONT_SIZE, GRID, LETTER, MARK, QUIET, colour, text

HEIGHT = 190
"""Of the lines' place, in pixels."""

_TOOLTIPS = 80
"""Columns that have a tooltip."""
_MOST_DOTS = 120
"""More dots than that are a line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where on a chart things are."""

    steps: Scale
    values: Scale
    top: int
    """Above it lies the legend, in pixels."""
    is_share: bool

    @property
    def bottom(self) -> int:
        return self.top + HEIGHT

    def x(self, step: float) -> str:
        return f"{100 * self.steps.share(step):.2f}%"

    def y(self, value: float) -> float:
        return round(self.top + HEIGHT * (1 - self.values.share(value)), 1)

    def written(self, value: float) -> str:
        return number(value, share=self.is_share)


def chart(curve: Curve, marks: Sequence[Mark]) -> str:
    """Returns a curve as one `<svg class="chart">`, to be put into a page.

    A long line is thinned out to what can be seen, its extremes among it; a noisy one is drawn
    faintly behind its mean. Values that would press all others flat lie above the chart, which
    says so.

    Args:
        curve: What to draw; its names may hold anything.
        marks: Where launches went on with training.
    """
    lines = [line for line in curve.lines if line.points]
    if not lines:
        nothing = f"{curve.title}: nothing was recorded"
        return _svg(nothing, 40, 0, [f'<text y="24" fill="{QUIET}">{text(nothing)}</text>'])
    steps = [step for line in lines for step in (line.points[0][0], line.points[-1][0])]
    values = [value for line in lines for _, value in line.points]
    highest = highest_in_sight(values)
    beyond = [point for line in lines for point in line.points if point[1] > highest]
    scale = step_scale(min(steps), max(steps))
    shown = [mark for mark in marks if scale.low <= mark.step <= scale.high]
    means = [None if line.dotted else smoothed(line.points, highest) for line in lines]
    window = next((mean[1] for mean in means if mean), 0)
    rows = legend_of(curve, lines, shown, window=window, beyond=beyond)
    place = _Place(
        steps=scale,
        values=value_scale(min(values), highest, share=curve.share),
        top=len(rows) * ROW + 8,
        is_share=curve.share,
    )
    widest = max(len(place.values.write(tick)) for tick in place.values.ticks)
    left = round(max(4, widest) * LETTER) + 12
    body = [
        *draw_legend(rows, left),
        *_axes(place),
        *_lines(lines, [mean[0] if mean else None for mean in means], place),
        *_tooltips(lines, place),
        *(part for mark in shown for part in _mark(mark, place)),
        *_dots(lines, place),
    ]
    return _svg(f"{curve.title}; {_about(lines, place)}", place.bottom + 24, left, body)


def _svg(about: str, height: int, left: int, body: Sequence[str]) -> str:
    # Said as style, so that what a page says of all its pictures does not change it.
    style = (
        f"display:block;box-sizing:border-box;overflow:visible;width:100%;height:{height}px;"
        f"padding:0 16px 0 {left}px;font-size:{FONT_SIZE}px"
    )
    return (
        f'<svg class="chart" role="img" aria-label="{text(about)}" style="{style}">'
        f"{''.join(body)}</svg>"
    )


def _axes(place: _Place) -> Iterator[str]:
    for tick in place.values.ticks:
        y, written = place.y(tick), place.values.write(tick)
        yield f'<line x1="0" x2="100%" y1="{y}" y2="{y}" stroke="{GRID}"/>'
        yield f'<text x="-7" y="{y + 4:.1f}" text-anchor="end" fill="{QUIET}">{written}</text>'
    below = f'y="{place.bottom + 17}" fill="{QUIET}"'
    for tick in place.steps.ticks:
        x, written = place.x(tick), place.steps.write(tick)
        ends = f'x1="{x}" x2="{x}" y1="{place.bottom}" y2="{place.bottom + 4}"'
        yield f'<line {ends} stroke="{QUIET}"/>'
        anchor = "start" if tick == place.steps.low and len(written) > 1 else "middle"
        yield f'<text x="{x}" {below} text-anchor="{anchor}">{written}</text>'
    yield f'<text x="-9" {below} text-anchor="end">step</text>'


def _lines(
    lines: Sequence[Line], means: Sequence[Sequence[Point] | None], place: _Place
) -> Iterator[str]:
    """Yields the picture that is stretched, all lines in it."""
    # Of a picture in a picture Chromium takes the attributes, and Firefox what a page's style says.
    yield (
        f'<svg x="0" y="{place.top}" width="100%" height="{HEIGHT}" '
        f'style="width:100%;height:{HEIGHT}px" '
        f'viewBox="0 0 1000 {HEIGHT}" preserveAspectRatio="none" overflow="hidden">'
    )
    for at, (line, mean) in enumerate(zip(lines, means, strict=True)):
        if mean is not None:
            yield _path(line.points, at, place, 'stroke-width="1" stroke-opacity=".38"')
            yield _path(mean, at, place, 'stroke-width="2"')
        elif len(line.points) > 1:
            yield _path(line.points, at, place, 'stroke-width="1.8"')
    yield "</svg>"


def _path(points: Sequence[Point], at: int, place: _Place, stroke: str) -> str:
    drawn = " ".join(
        f"{1000 * place.steps.share(step):.1f} {place.y(value) - place.top:.1f}"
        for step, value in thinned(points)
    )
    return (
        f'<path d="M{drawn}" fill="none" stroke="{colour(at)}" {stroke} '
        'stroke-linejoin="round" vector-effect="non-scaling-stroke"/>'
    )


def _dots(lines: Sequence[Line], place: _Place) -> Iterator[str]:
    for at, line in enumerate(lines):
        if len(line.points) > (_MOST_DOTS if line.dotted else 1):
            continue
        for step, value in line.points:
            said = f"step {step:,}: {line.name} {place.written(value)}"
            y = max(place.y(value), place.top)
            yield (
                f'<circle cx="{place.x(step)}" cy="{y}" r="3.4" fill="{colour(at)}">'
                f"<title>{text(said)}</title></circle>"
            )


def _tooltips(lines: Sequence[Line], place: _Place) -> Iterator[str]:
    """Yields columns that cannot be seen, each with what is known in it."""
    low, high = place.steps.low, place.steps.high
    found: dict[int, dict[str, list[Point]]] = {}
    for line in lines:
        for point in line.points:
            by_line = found.setdefault(column_of(point[0], low, high, _TOOLTIPS), {})
            by_line.setdefault(line.name, []).append(point)
    for column, by_line in sorted(found.items()):
        steps = [step for points in by_line.values() for step, _ in points]
        first, last = min(steps), max(steps)
        span = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
        said = [span, *(f"{name} {_span(points, place)}" for name, points in by_line.items())]
        yield (
            f'<rect class="at" x="{100 * column / _TOOLTIPS:g}%" y="{place.top}" '
            f'width="{100 / _TOOLTIPS:g}%" height="{HEIGHT}" fill="transparent">'
            f"<title>{text(chr(10).join(said))}</title></rect>"
        )


def _span(points: Sequence[Point], place: _Place) -> str:
    values = [value for _, value in points]
    low, high = place.written(min(values)), place.written(max(values))
    return low if low == high else f"{low} to {high}"


def _mark(mark: Mark, place: _Place) -> Iterator[str]:
    x = place.x(mark.step)
    ends = f'x1="{x}" x2="{x}" y1="{place.top - 4}" y2="{place.bottom}"'
    yield f'<g class="{mark.kind}"><title>{text(mark.words)}</title>'
    yield f'<line {ends} stroke="{MARK}" stroke-width="1.4" '
    yield f'stroke-dasharray="{DASHES[mark.kind]}"/>'
    yield f'<line {ends} stroke="transparent" stroke-width="11"/></g>'  # is easier to point at


def _about(lines: Sequence[Line], place: _Place) -> str:
    """Returns what a chart shows in words, for who does not see it."""
    parts = []
    for line in lines:
        (first, begin), (last, end) = line.points[0], line.points[-1]
        parts.append(
            f"{line.name}: {place.written(begin)} at step {first:,}, {place.written(end)} at step "
            f"{last:,}; all in all {_span(line.points, place)}"
        )
    return "; ".join(parts)
