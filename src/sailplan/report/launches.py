"""The launches of a run, a line each: when, for how long, on what, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from sailplan.report.reading import objects_of, or_else, record_of
from sailplan.run.state import RunState
from sailplan.sizes import duration
from sailplan.supervise.attempt_log import Attempt

_ENDS = {
    "finished": "finished",
    "interrupted": "interrupted",
    "stopped": "stopped",
    "oom": "ran out of memory",
    "hang": "hung",
    "signal": "was killed",
    "user": "failed",
    "connection": "lost the connection between its ranks",
}
"""How a launch ended, by its kind."""

_QUIET = ("finished", "interrupted")
"""Kinds of which there is no more to say."""


def attempts_of(path: Path) -> list[Attempt]:
    """Returns the launches that are written down, the first one first; broken lines are none."""
    return [found for data in objects_of(path) if (found := record_of(Attempt, data))]


def launches_of(attempts: Iterable[Attempt], state: RunState | None) -> tuple[str, ...]:
    """Returns a line for each launch, the one that runs now among them.

    Args:
        attempts: Those that are written down, which is done at their end.
        state: What the run last said of itself.
    """
    return tuple(_lines(list(attempts), state))


def _lines(attempts: list[Attempt], state: RunState | None) -> Iterator[str]:
    for one in attempts:
        yield f"launch {one.number}, {_when(one)}, {_how(one)}: {_end(one)}"
    if state is not None and state.state in ("starting", "running"):
        behind = all(one.ended_at < state.updated_at for one in attempts)
        number = max((one.number for one in attempts), default=0) + 1
        if behind:
            since = _moment(state.started_at)
            yield f"launch {number}, since {since}, on {state.host}: at step {state.step:,}"


def _when(one: Attempt) -> str:
    return f"{_moment(one.started_at)} for {duration(max(0.0, one.ended_at - one.started_at))}"


def _moment(seconds: float) -> str:
    def written() -> str:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))

    return or_else("an unknown time", written)


def _how(one: Attempt) -> str:
    ranks = f"{one.processes} × {one.device}" if one.processes != 1 else one.device
    return f"{ranks}, {one.strategy}, micro batch {one.micro_batch} × {one.accumulation}"


def _end(one: Attempt) -> str:
    words = f"{_ENDS.get(one.kind, 'failed')} at step {one.step:,}"
    if one.error and one.kind not in _QUIET:
        words += f" ({' '.join(one.error.split())})"
    return f"{words}; next: {one.next_words}" if one.next_words else words
