"""Progress of every wait: a bar on a terminal, plain lines where there is none (Slurm logs)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")

PLAIN_LINE_EVERY_S = 10.0


def track(items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
    """Yields `items` while showing how far they are, on standard error.

    On a terminal a Rich bar with rate and ETA; elsewhere a plain line every
    `PLAIN_LINE_EVERY_S` seconds and one at the end where the wait was longer than that.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        yield from _bar(items, label, total)
    else:
        yield from _lines(items, label, total)


def _bar(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total, description=label)


def _lines(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= PLAIN_LINE_EVERY_S:
            last = now
            of = f" of {total}" if total else ""
            print(f"{label}: {done}{of}, {done / (now - start):.1f}/s", file=sys.stderr, flush=True)
    if last != start:
        print(f"{label}: {done} done in {time.monotonic() - start:.0f} s", file=sys.stderr)
