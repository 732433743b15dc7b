"""An inspection as one HTML page that needs nothing else, and runs no script.

Everything that comes from data, model or run file is escaped by Jinja, and the page forbids scripts
to itself besides (its content security policy).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sailplan.inspect.findings import SEVERITIES
from sailplan.inspect.histogram import Summary
from sailplan.inspect.samples import Piece
from sailplan.pages import pictures, render

if TYPE_CHECKING:
    from sailplan.inspect.inspection import Inspection

_WIDTH, _HEIGHT, _BASE = 460, 150, 130
_MOST_TICKS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bar:
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tick:
    x: float
    text: str
    anchor: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chart:
    title: str
    least: int
    median: int
    p95: int
    most: int
    highest: int
    bars: tuple[_Bar, ...]
    ticks: tuple[_Tick, ...]
    mark: float | None
    width: int = _WIDTH
    height: int = _HEIGHT
    base: int = _BASE


def write_page(inspection: Inspection, path: Path) -> None:
    """Writes the page, whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    render.write_page(path, page(inspection))


def page(inspection: Inspection) -> str:
    """Returns the page's text."""
    template = render.environment(Path(__file__).parent).get_template("page.html.j2")
    severities = Counter(finding.severity for finding in inspection.findings)
    return template.render(
        it=inspection,
        data_name=inspection.data,
        severities=SEVERITIES,
        counts={severity: severities[severity] for severity in SEVERITIES},
        num_rows=sum(split.num_rows for split in inspection.splits),
        charts=_charts(inspection),
        parts=_parts,
        thumbnail=lambda image: pictures.data_url(pictures.thumbnail(image)),
        short=_short,
    )


def _charts(inspection: Inspection) -> list[_Chart]:
    charts = []
    for split in inspection.splits:
        for title, found, limit in (
            ("tokens of a sample", split.length_tokens, inspection.limit_tokens),
            ("trained tokens of a sample", split.trained_tokens, None),
            ("image tokens of a sample with images", split.image_tokens, None),
        ):
            if found is not None:
                charts.append(_chart(f"{split.name}: {title}", found, limit))
    return charts


def _chart(title: str, found: Summary, limit: int | None) -> _Chart:
    bins = found.histogram
    step, highest = _WIDTH / len(bins.counts), max(bins.counts)
    bars = []
    for number, count in enumerate(bins.counts):
        if count:
            height = max(2.0, count / highest * (_BASE - 22))
            low = bins.start + number * bins.step
            span = f"{low:,}" if bins.step == 1 else f"{low:,} to {low + bins.step - 1:,}"
            bars.append(
                _Bar(
                    x=round(number * step + min(1.0, step / 8), 2),
                    y=round(_BASE - height, 2),
                    width=round(min(step - min(2.0, step / 4), 60), 2),
                    height=round(height, 2),
                    title=f"{span} tokens: {count:,} rows",
                )
            )
    end = bins.start + len(bins.counts) * bins.step
    at = None if limit is None else (limit - bins.start) / bins.step * step
    return _Chart(
        title=title,
        least=found.least,
        median=found.median,
        p95=found.p95,
        most=found.most,
        highest=highest,
        bars=tuple(bars),
        ticks=_ticks(bins.start, end, bins.step, len(bins.counts)),
        mark=round(at, 1) if at is not None and 40 < at < _WIDTH else None,
    )


def _ticks(start: int, end: int, step: int, num_bins: int) -> tuple[_Tick, ...]:
    every = max(1, -(-num_bins // _MOST_TICKS))
    ticks = []
    for number in range(0, num_bins, every):
        x = number / num_bins * _WIDTH
        anchor = "start" if number == 0 else "middle"
        if x < _WIDTH - 30:
            ticks.append(_Tick(x=round(x, 1), text=f"{start + number * step:,}", anchor=anchor))
    if num_bins > 1:
        ticks = [tick for tick in ticks if tick.x < _WIDTH - 60]
        ticks.append(_Tick(x=_WIDTH, text=f"{end:,}", anchor="end"))
    return tuple(ticks)


def _parts(piece: Piece) -> list[str]:
    """Returns a piece's text cut at its line breaks, which are parts of their own."""
    if piece.kind == "padding":
        return [f"padding ×{piece.count}"]
    if piece.count > 1:
        return [f"{piece.text} ×{piece.count}"]
    return re.split(r"(?<=\n)|(?=\n)", piece.text)


def _short(count: int) -> str:
    """Returns a large number in three digits, such as 1.23 M."""
    for size, name in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if count >= size:
            scaled = count / (1000 if name == "k" else size)
            return f"{scaled:.3g} {name}" if scaled < 1000 else f"{scaled:,.0f} {name}"
    return f"{count:,}"
