"""The curves of a run as one picture for slides, by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sailplan.errors import OutputError
from sailplan.report.points import highest_in_sight, smoothed, thinned
from sailplan.report.record import Curve, Line, Mark, Report
from sailplan.report.scales import number, step_scale, value_scale
from sailplan.terminal import harmless

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#2f6fb8", "#c2571a", "#2a8a5a", "#8a4fbf")
_TEXT, _QUIET, _GRID, _MARK = "#1b222c", "#647081", "#e1e5ea", "#c62f2f"
_STYLES: dict[str, Any] = {"resume": (0, (1.2, 2.2)), "rollback": (0, (4, 2))}
_NAMES = {"resume": "resumed", "rollback": "rolled back"}

_DPI = 200
"""Sharp on a slide: a row of two charts is 2,400 pixels wide."""
_WIDTH, _HEIGHT = 6.0, 3.3
"""Of a chart, in inches."""


def png_of(report: Report) -> bytes:
    """Returns all curves of a run as one PNG, marks among them, on white.

    Raises:
        OutputError: matplotlib is not installed, or there is no curve.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        todo = "pip install 'sailplan[report]'"
        raise OutputError("pictures of curves need matplotlib", todo=todo) from None
    curves = [curve for curve in report.curves if any(line.points for line in curve.lines)]
    if not curves:
        got = f"{report.path} has logged nothing that could be drawn"
        raise OutputError(got, todo="leave --png out until it has trained")
    across = min(2, len(curves))
    down = -(-len(curves) // across)
    figure = Figure(
        figsize=(across * _WIDTH, down * _HEIGHT + 0.6),
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1),
        facecolor="white",
    )
    figure.suptitle(_plain(f"{report.name}: {report.state}"), color=_TEXT, fontsize=13)
    for place, curve in enumerate(curves):
        _draw(figure.add_subplot(down, across, place + 1), curve, report.marks, is_first=place == 0)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI)
    return content.getvalue()


def _plain(words: str) -> str:
    """Returns words that matplotlib takes as they are: `$` would begin mathematics."""
    return harmless(words).replace("$", r"\$")


def _draw(axes: Axes, curve: Curve, marks: Sequence[Mark], *, is_first: bool) -> None:
    lines = [line for line in curve.lines if line.points]
    steps = [step for line in lines for step in (line.points[0][0], line.points[-1][0])]
    values = [value for line in lines for _, value in line.points]
    highest = highest_in_sight(values)
    along = step_scale(min(steps), max(steps), most_ticks=7)
    up = value_scale(min(values), highest, share=curve.share)
    for place, line in enumerate(lines):
        is_title = len(lines) == 1 and line.name == curve.title
        _draw_line(axes, line, highest, _COLOURS[place % len(_COLOURS)], in_legend=not is_title)
    for kind, name in _NAMES.items():
        here = [mark for mark in marks if mark.kind == kind]
        for place, mark in enumerate(one for one in here if along.low <= one.step <= along.high):
            label = name if is_first and place == 0 else "_"  # each kind once in the picture
            axes.axvline(mark.step, color=_MARK, lw=1.1, ls=_STYLES[kind], label=label)
    num_above = sum(value > highest for value in values)
    below = "step"
    if num_above:
        most = number(max(values), share=curve.share)
        below += f"  ({num_above} value{'s' * (num_above > 1)} above the chart, up to {most})"
    axes.set_xlabel(below, color=_QUIET, fontsize=9)
    axes.set_title(_plain(curve.title), loc="left", color=_TEXT, fontsize=11, fontweight="bold")
    axes.set_xlim(along.low, along.high)
    axes.set_ylim(up.low, up.high)
    axes.set_xticks(along.ticks, [along.write(tick) for tick in along.ticks])
    axes.set_yticks(up.ticks, [up.write(tick) for tick in up.ticks])
    _dress(axes)


def _draw_line(axes: Axes, line: Line, highest: float, colour: str, *, in_legend: bool) -> None:
    """Draws a line, a noisy one faintly behind its mean."""
    mean = None if line.dotted else smoothed(line.points, highest)
    if mean is not None:
        axes.plot(*zip(*thinned(line.points), strict=True), color=colour, lw=0.6, alpha=0.35)
    has_dots = line.dotted or len(line.points) == 1
    axes.plot(
        *zip(*thinned(mean[0] if mean else line.points), strict=True),
        color=colour,
        marker="o" if has_dots else "",
        markersize=4.5,
        clip_on=not has_dots,  # else an edge would cut a dot in half
        label=_plain(line.name) if in_legend else "_",
    )


def _dress(axes: Axes) -> None:
    axes.tick_params(colors=_QUIET, labelsize=9, length=3)
    axes.grid(axis="y", color=_GRID)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=_QUIET)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(  # beside the title, where no line is
            loc="lower right",
            bbox_to_anchor=(1.01, 1.0),
            ncols=5,
            frameon=False,
            fontsize=8.5,
            labelcolor=_TEXT,
            handlelength=1.5,
            handletextpad=0.5,
            columnspacing=1.1,
            borderaxespad=0.2,
        )
