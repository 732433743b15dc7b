"""The curves of a run, and where its launches went on, from what it logged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sailplan.report.record import Curve, Line, Mark, Point
from sailplan.run.metrics import GoingOn, Series
from sailplan.supervise.attempt_log import Attempt

_TRAINING, _HELD_OUT = "training", "held out"
_OF_PEAK = "the GPUs' part of their peak (MFU)"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shown:
    """One chart of the numbers that records may have."""

    name: str
    title: str
    lines: tuple[tuple[str, str], ...]
    """The name of each number in the records, and of its line."""
    share: bool = False


_CHARTS: Final = (
    _Shown(
        name="loss",
        title="loss of a token",
        lines=(("loss", _TRAINING), ("eval_loss", _HELD_OUT)),
    ),
    _Shown(
        name="mean_token_accuracy",
        title="mean token accuracy",
        lines=(("mean_token_accuracy", _TRAINING), ("eval_mean_token_accuracy", _HELD_OUT)),
        share=True,
    ),
    _Shown(name="perplexity", title="perplexity", lines=(("eval_perplexity", _HELD_OUT),)),
    _Shown(name="learning_rate", title="learning rate", lines=()),
    _Shown(name="grad_norm", title="gradient norm", lines=(("grad_norm", "gradient norm"),)),
    _Shown(name="tokens_per_s", title="tokens/s", lines=(("tokens_per_s", "tokens/s"),)),
    _Shown(
        name="data_wait_share",
        title="waiting for data",
        lines=(("data_wait_share", "waiting for data"),),
        share=True,
    ),
    _Shown(name="mfu", title=_OF_PEAK, lines=(("mfu", _OF_PEAK),), share=True),
)
"""All charts, in the order of the page."""

_RATE = "learning_rate"

_MOST_STEPS = 2**53
"""No run has more, and a chart's arithmetic holds until there."""


def curves_of(records: Sequence[dict[str, Any]]) -> tuple[Curve, ...]:
    """Returns the curves of a run; none of what it has not logged.

    Args:
        records: What counts of its metrics, in the order of the steps.
    """
    return tuple(_curves(records))


def _curves(records: Sequence[dict[str, Any]]) -> Iterator[Curve]:
    for shown in _CHARTS:
        of_records = shown.lines or tuple(_rates(records))
        lines = [
            Line(name=name, points=points, dotted=name == _HELD_OUT)
            for key, name in of_records
            if (points := _points(records, key))
        ]
        if lines:
            yield Curve(name=shown.name, title=shown.title, lines=tuple(lines), share=shown.share)


def _rates(records: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yields the learning rates that records have: one, and those of parts of the model."""
    names = dict.fromkeys(name for record in records for name in record if _RATE in name)
    for name in sorted(names, key=lambda name: (name != _RATE, name)):
        part = name.replace(_RATE, "").strip("_/ ").replace("_", " ")
        yield name, part or "learning rate"


def _points(records: Iterable[dict[str, Any]], key: str) -> tuple[Point, ...]:
    """Returns a number of the records at their steps; of two at a step, the later counts."""
    found: dict[int, float] = {}
    for record in records:
        value = _number(record.get(key))
        if value is not None and 0 <= record["step"] <= _MOST_STEPS:
            found[record["step"]] = value
    return tuple(sorted(found.items()))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond all floats
        return None


def marks_of(series: Series, attempts: Sequence[Attempt]) -> tuple[Mark, ...]:
    """Returns where launches went on.

    Args:
        series: The run's metrics.
        attempts: Its launches that are written down.
    """
    return tuple(_mark(one, attempts) for one in series.going_on if 0 <= one.step <= _MOST_STEPS)


def _mark(one: GoingOn, attempts: Sequence[Attempt]) -> Mark:
    number = _launch_at(one.time, attempts)
    launch = f"launch {number}" if number else "a launch"
    words = f"{launch} went on from step {one.step:,}" if one.step else f"{launch} began anew"
    num_again = one.reached - one.step
    if num_again <= 0:
        return Mark(step=one.step, kind="resume", words=words)
    steps = f"steps {one.step + 1:,} to {one.reached:,} were"
    if num_again == 1:
        steps = f"step {one.reached:,} was"
    return Mark(step=one.step, kind="rollback", words=f"{words}; {steps} done again")


def _launch_at(time: float, attempts: Sequence[Attempt]) -> int | None:
    """Returns the number of the launch that trained at a time.

    Launches are written down at their end: what comes behind the last is of the one that runs.
    """
    for attempt in attempts:
        if attempt.started_at <= time <= attempt.ended_at:
            return attempt.number
    if attempts and time > max(attempt.ended_at for attempt in attempts):
        return max(attempt.number for attempt in attempts) + 1
    return None
