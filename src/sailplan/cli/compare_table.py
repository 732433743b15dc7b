"""A comparison as a table: each score of each side, and whether a change is more than chance."""

from __future__ import annotations

from sailplan.evaluate.comparison import Comparison, Estimate, Score
from sailplan.evaluate.scores.names import SHARES, TITLES
from sailplan.supervise.shown import console_of
from sailplan.terminal import harmless

STYLES = {"better": "green", "worse": "red", "unclear": "dim"}


def print_comparison(found: Comparison) -> None:
    """Prints the scores of all sides, and below them what the verdicts stand on."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = console_of()
    names = [side.name for side in found.sides]
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
            sign = "+" if change.difference.value > 0 else ""
            cells.append(sign + _interval(score, change.difference))
            words = "" if score.better == "neither" else change.verdict
            cells.append(Text(words, style=STYLES[change.verdict]))
        table.add_row(TITLES.get(score.name, harmless(score.name)), *cells)
    console.print(table)
    told = f"{len(found.rows)} of {found.num_held_out} rows of {harmless(found.split)} answered"
    if found.num_loss_rows:
        told += f", losses over {found.num_loss_rows}"
    console.print(f"{told}; brackets: 95 % intervals; unclear: it may be chance (p ≥ 0.05)")


def _number(score: Score, estimate: Estimate | None) -> str:
    return "" if estimate is None else shown(score.name, estimate.value)


def _interval(score: Score, estimate: Estimate) -> str:
    value, low, high = (
        shown(score.name, one) for one in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"


def shown(name: str, value: float) -> str:
    """Returns a score's value as it is written: shares in percent."""
    return f"{value:.1%}" if name in SHARES else f"{value:.4g}"
