"""A comparison as a table: each score of each side, and whether a change is more than chance."""

from __future__ import annotations

from sailplan.evaluate.comparison import Comparison, Estimate, Score
from sailplan.evaluate.scores.names import SHARES, TITLES
from sailplan.supervise.shown import console_of
from sailplan.terminal import harmless

_WIDTH_OF_A_CHANGE = 44
_WIDTH_OF_THE_REST = 48
"""In letters; where there is less room, changes stand without their intervals."""

STYLES = {"better": "green", "worse": "red", "unclear": "dim"}


def print_comparison(found: Comparison) -> None:
    """Prints the scores of all sides, and below them what the verdicts stand on."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = console_of()
    names = [side.name for side in found.sides]
    room = _WIDTH_OF_THE_REST + _WIDTH_OF_A_CHANGE * (len(names) - 1)
    intervals = console.width >= room
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("score")
    for name in names:
        table.add_column(harmless(name), justify="right")
    for _ in names[1:]:
        table.add_column("change", justify="right")
        table.add_column("")
    for score in found.scores:
        cells: list[str | Text] = [_number(score, score.sides.get(name)) for name in names]
        for name in names[1:]:
            change = score.changes.get(name)
            if change is None:
                cells += ["", ""]
                continue
            cells.append(_change(score, change.difference, interval=intervals))
            words = "" if score.better == "neither" else change.verdict
            cells.append(Text(words, style=STYLES[change.verdict]))
        table.add_row(TITLES.get(score.name, harmless(score.name)), *cells)
    console.print(table)
    told = f"{len(found.rows)} of {found.num_held_out} rows of {harmless(found.split)} answered"
    if found.num_loss_rows:
        told += f", losses over {found.num_loss_rows}"
    brackets = "brackets: 95 % intervals; " if intervals else ""
    console.print(f"{told}; {brackets}unclear: it may be chance (p ≥ 0.05)")


def _number(score: Score, estimate: Estimate | None) -> str:
    return "" if estimate is None else shown(score.name, estimate.value)


def _change(score: Score, difference: Estimate, *, interval: bool) -> str:
    value, low, high = (
        shown(score.name, one) for one in (difference.value, difference.low, difference.high)
    )
    signed = f"+{value}" if difference.value > 0 else value
    return f"{signed} [{low}, {high}]" if interval else signed


def shown(name: str, value: float) -> str:
    """Returns a score's value as it is written: shares in percent."""
    return f"{value:.1%}" if name in SHARES else f"{value:.4g}"
