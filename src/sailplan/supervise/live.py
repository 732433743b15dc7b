"""Follows a run until it ends: as a picture that is drawn anew, or as a line for each record."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from sailplan.plan.measured import WORTH_TELLING
from sailplan.sizes import duration
from sailplan.supervise.runs import RunSummary
from sailplan.supervise.screen import picture
from sailplan.supervise.shown import again_by, steps
from sailplan.supervise.stands import ENDED
from sailplan.supervise.watch import Watcher
from sailplan.terminal import harmless

if TYPE_CHECKING:
    from rich.console import Console

EVERY_S = 1.0
"""So often the run is looked at."""

_HINT = "q leaves, the run goes on"
_LEAVE = (b"q", b"Q", b"\x04", b"")
"""Keys that leave; the last is the end of input."""
_SHOWN_RECORDS = 10
"""Records that are printed of what was before, where each is a line."""
_WORDS = (
    ("loss", "loss {:.4g}"),
    ("eval_loss", "held out: loss {:.4g}"),
    ("grad_norm", "gradient norm {:.3g}"),
    ("learning_rate", "learning rate {:.3g}"),
    ("tokens_per_s", "{:,.0f} tokens/s"),
    ("mfu", "{:.0%} of peak"),
    ("train_loss", "mean loss {:.4g}"),
)
"""What of a record is printed, and how."""


def show_once(directory: Path, console: Console) -> None:
    """Prints how a run is now."""
    view = Watcher(directory).look()
    console.print(picture(view, name=_name(directory), width=console.width, height=None, hint=""))


def follow_on_terminal(directory: Path, console: Console) -> None:
    """Draws a run until it ends, or until somebody leaves; then what was last seen stays.

    Args:
        directory: The run's.
        console: A terminal's.
    """
    from rich.live import Live

    watcher, name = Watcher(directory), _name(directory)
    view = watcher.look()
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        leaves = stack.enter_context(_leaving())
        live = stack.enter_context(Live(console=console, screen=True, auto_refresh=False))
        while True:
            width, height = console.size
            shown = picture(view, name=name, width=width, height=height, hint=_HINT)
            live.update(shown, refresh=True)
            if view.summary.is_over or leaves(EVERY_S):
                break
            view = watcher.look()
    console.print(picture(view, name=name, width=console.width, height=None, hint=""))
    console.print(farewell(view.summary), soft_wrap=True)


def follow_lines(directory: Path) -> None:
    """Prints a line for each record of a run until it ends.

    Args:
        directory: The run's.
    """
    watcher = Watcher(directory)
    said, is_first = ("", ""), True
    with suppress(KeyboardInterrupt):
        while True:
            view = watcher.look()
            one = view.summary
            # Of a job that waits the reason changes, and when Slurm expects it to start.
            now = (one.state, one.why.partition(";")[0] if one.state == "queued" else "")
            if now != said and one.state not in ENDED:
                why = f", {one.why}" if one.why else ""
                _say(harmless(f"{_name(directory)}: {one.state}{why}"))
            for record in view.new[-_SHOWN_RECORDS:] if is_first else view.new:
                _say(line_of(record, one))
            if one.is_over:
                break
            said, is_first = now, False
            time.sleep(EVERY_S)
        _say(harmless(farewell(one)))


def line_of(record: dict[str, Any], one: RunSummary) -> str:
    """Returns a record as one line."""
    of = f"/{one.max_steps}" if one.max_steps else ""
    if record.get("resumed"):
        return f"step {record['step']}{of}  goes on from here"
    words = [
        form.format(record[name])
        for name, form in _WORDS
        if isinstance(record.get(name), (int, float))
    ]
    waiting = record.get("data_wait_share")
    if isinstance(waiting, (int, float)) and waiting > WORTH_TELLING:
        words.append(f"{waiting:.0%} waiting for data")
    return "  ".join([f"step {record['step']}{of}", *words])


def farewell(one: RunSummary) -> str:
    """Says how a run ended, or that it goes on."""
    if not one.is_over:
        left = f", {duration(one.eta_s)} left" if one.eta_s is not None else ""
        return f"the run goes on ({one.state}{left})"
    at = f" at step {steps(one)}" if one.step is not None else ""
    why = f": {one.why}" if one.why else ""
    again = f"; `{again_by(one)}` goes on" if one.state != "finished" else ""
    return f"{one.state}{at}{why}{again}"


def _name(directory: Path) -> str:
    return directory.resolve().name


def _say(line: str) -> None:
    print(line, flush=True)


@contextmanager
def _leaving() -> Iterator[Callable[[float], bool]]:
    """Gives a function that waits so many seconds, and says whether somebody wants to leave.

    The terminal does not show what is typed meanwhile; afterwards it is as it was, a `kill` too.
    """
    import termios
    import tty

    def terminate(_signum: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    keys = sys.stdin.fileno() if sys.stdin.isatty() else None

    def leaves(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if keys is None:
                time.sleep(left)
            elif select.select([keys], [], [], left)[0] and os.read(keys, 1) in _LEAVE:
                return True
        return False

    previous = signal.signal(signal.SIGTERM, terminate)
    before = termios.tcgetattr(keys) if keys is not None else None
    try:
        if keys is not None:
            tty.setcbreak(keys)
        yield leaves
    finally:
        if keys is not None and before is not None:
            termios.tcsetattr(keys, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, previous)
