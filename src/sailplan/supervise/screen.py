"""One picture of a run for the terminal: how far it is, its curve, its numbers, its last words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from sailplan.sizes import duration, shown_bytes
from sailplan.supervise.curve import draw
from sailplan.supervise.shown import STYLES, rate, steps
from sailplan.supervise.watch import View
from sailplan.terminal import harmless

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_NUMBERS: Final = (
    ("loss", "loss", "{:.4g}"),
    ("learning_rate", "learning rate", "{:.3g}"),
    ("grad_norm", "gradient norm", "{:.3g}"),
    ("tokens_per_s", "tokens/s", "{:,.0f}"),
    ("data_wait_share", "waiting for data", "{:.0%}"),
    ("mfu", "of peak", "{:.0%}"),
    ("num_tokens", "tokens seen", "{:,.0f}"),
)
"""What of the last record is shown, how it is called, and how it is written."""

CURVE_ROWS = 8
LOG_LINES = 6
"""Of both so many where there is room."""
_LEAST_CURVE_ROWS = 4
_EVALUATIONS = 3
_RANKS = 4
"""Of more ranks only those that have moved least lately are shown."""
_GUTTER = 9
"""The width of the numbers beside the curve."""
_IDLE_S = 10.0
"""A rank that has not moved for so long is said to have waited."""


def picture(view: View, *, name: str, width: int, height: int | None, hint: str) -> RenderableType:
    """Returns a run as it is now.

    Args:
        view: The run.
        name: What it is called.
        width: Letters of a line.
        height: Lines that there are; None where there are as many as are wanted.
        hint: The last line; may be empty.
    """
    from rich.console import Group
    from rich.text import Text

    head = [*_head(view, name, width), Text()]
    facts = [*_numbers(view, width), Text(), *_facts(view, width)]
    foot = [Text(hint, style="dim")] if hint else []
    room = 10**6 if height is None else height - len(head) - len(facts) - len(foot) - 1
    points = len(view.training)
    curve_rows = min(CURVE_ROWS, room - 2) if points > 1 else 0
    curve = _curve(view, width, curve_rows) if curve_rows >= _LEAST_CURVE_ROWS else []
    log = _log(view, width, min(LOG_LINES, room - len(curve) - 2))
    return Group(*head, *curve, *facts, *log, *foot)


def _head(view: View, name: str, width: int) -> Iterator[Text]:
    from rich.text import Text

    one = view.summary
    details = [one.host or ""]
    if one.strategy:
        many = f" × {one.processes}" if (one.processes or 1) > 1 else ""
        details.insert(0, f"{one.strategy}{many}")
    if one.num_starts and one.num_starts > 1:
        details.append(f"launched {one.num_starts} times")
    line = Text.assemble((harmless(name), "bold"), "  ", (one.state, STYLES[one.state]), "  ")
    line.append(harmless(" · ".join(filter(None, details))), style="dim")
    line.truncate(width, overflow="ellipsis")
    yield line
    if one.why:
        why = Text(harmless(one.why), style=STYLES[one.state])
        why.truncate(2 * width, overflow="ellipsis")
        yield why
    if one.step is None:
        return
    words = [f"step {steps(one)}"]
    if one.step_s is not None:
        words.append(rate(one.step_s))
    if one.eta_s is not None:
        words.append(f"{duration(one.eta_s)} left")
    told = " · ".join(words)
    bar = width - len(told) - 2
    if one.max_steps and bar >= 10:
        full = round(bar * min(1.0, one.step / one.max_steps))
        style = "red" if one.state in ("failed", "killed") else "green"
        yield Text.assemble(("━" * full, style), ("─" * (bar - full), "dim"), "  ", told)
    else:
        yield Text(told)


def _curve(view: View, width: int, rows: int) -> list[Text]:
    from rich.text import Text

    points = [(record["step"], float(record["loss"])) for record in view.training]
    marks = [(record["step"], float(record["eval_loss"])) for record in view.evaluations]
    drawn = draw(points, width=width - _GUTTER - 2, height=rows, marks=marks)
    if drawn is None:
        return []
    lines = []
    for number, dots in enumerate(drawn.rows):
        value = {0: drawn.high, rows - 1: drawn.low}.get(number)
        label = "" if value is None else f"{value:.4g}"
        line = Text(f"{label:>{_GUTTER - 2}} ", style="dim")
        line.append("┤" if label else "│", style="dim")
        line.append(" ")
        letters = Text(dots, style="cyan")
        for row, column in drawn.marks:
            if row == number:
                letters = Text.assemble(
                    letters[:column], ("◆", "bold magenta"), letters[column + 1 :]
                )
        line.append_text(letters)
        lines.append(line)
    first, last = f"step {points[0][0]:,}", f"{points[-1][0]:,}"
    axis = f"{first}{last:>{max(0, width - _GUTTER - 2 - len(first))}}"
    below = Text(" " * (_GUTTER + 1) + axis, style="dim")
    return [*lines, below, Text()]


def _numbers(view: View, width: int) -> list[Text]:
    """Returns the last record's numbers, three or four a line."""
    from rich.text import Text

    if not view.training:
        return []
    last = view.training[-1]
    cells = []
    for name, label, form in _NUMBERS:
        value = last.get(name)
        if isinstance(value, (int, float)):
            style = "bold" if math.isfinite(value) else "bold red"
            cells.append(Text.assemble((f"{label} ", "dim"), (form.format(value), style)))
    across = 3 if width < 100 else 4
    lines = []
    for start in range(0, len(cells), across):
        line = Text()
        for cell in cells[start : start + across]:
            cell.pad_right(max(0, width // across - len(cell)))
            line.append_text(cell)
        line.rstrip()
        lines.append(line)
    return lines


def _facts(view: View, width: int) -> list[Text]:
    """Returns a line each of what is known of evaluations, checkpoints and ranks."""
    from rich.text import Text

    lines = [*_evaluations(view), _checkpoint(view), *_jobs(view), *_ranks(view)]
    shown = []
    label_before = ""
    for label, text, style in lines:
        line = Text(f"{label if label != label_before else '':<12}", style="dim")
        line.append(harmless(text), style=style)
        line.truncate(width, overflow="ellipsis")
        shown.append(line)
        label_before = label
    return shown


Line = tuple[str, str, str]
"""What it is about, what is said, and the style."""


def _evaluations(view: View) -> list[Line]:
    found = [record for record in view.evaluations if _is_number(record["eval_loss"])]
    if not found:
        return []
    best = min(found, key=lambda record: float(record["eval_loss"]))
    lines = []
    for record in found[-_EVALUATIONS:]:
        text = f"step {record['step']:,}  loss {record['eval_loss']:.4g}"
        accuracy = record.get("eval_mean_token_accuracy")
        if _is_number(accuracy):
            text += f"  {accuracy:.1%} of tokens right"
        is_best = record is best and len(found) > 1
        lines.append(("◆ held out", text + ("  best" if is_best else ""), "default"))
    return lines


def _checkpoint(view: View) -> Line:
    one = view.summary
    if one.checkpoint is None:
        text = "none is whole yet" if one.checkpoints_bytes else "none yet"
        return "checkpoint", text, "default"
    text = f"step {one.checkpoint:,} is whole; {shown_bytes(one.checkpoints_bytes)} in all"
    return "checkpoint", text, "default"


def _jobs(view: View) -> list[Line]:
    styles = {"failed": "red", "cancelled": "yellow", "waiting": "cyan"}
    return [
        ("jobs", f"{job.kind} {job.job_id}  {job.words}", styles.get(job.state, "default"))
        for job in view.summary.jobs
        if job.kind != "train" or view.summary.state != "queued"  # whose own words these are
    ]


def _ranks(view: View) -> list[Line]:
    slowest = sorted(view.beats, key=lambda beat: beat.idle_s, reverse=True)[:_RANKS]
    lines = []
    for beat in sorted(slowest, key=lambda beat: beat.rank):
        text = f"{beat.rank}  step {beat.step:,}  {beat.phase}"
        waits = beat.idle_s >= _IDLE_S
        text += f" for {duration(beat.idle_s)}" if waits else ""
        lines.append(("ranks", text, "yellow" if waits else "default"))
    more = len(view.beats) - len(slowest)
    return [*lines, ("ranks", f"and {more} more", "dim")] if more else lines


def _log(view: View, width: int, count: int) -> list[Text]:
    from rich.text import Text

    if count < 1 or not view.log:
        return []
    lines = [Text(), Text("log", style="dim")] if count > 1 else []
    for text in view.log[-count:]:
        line = Text("  " + harmless(text).expandtabs(4), style="dim")
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    return lines


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
