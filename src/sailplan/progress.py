"""Progress of every wait: a bar on a terminal, plain lines where there is none (Slurm logs)."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
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


@contextmanager
def track_bytes(label: str, *, total: int) -> Iterator[Callable[[float], None]]:
    """Gives a function to be called with each number of bytes that has come, and shows them.

    On a terminal a bar with rate and ETA; elsewhere a plain line every `PLAIN_LINE_EVERY_S`.
    """
    if sys.stderr.isatty() and total:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(label, total=total)
            yield lambda count: progress.advance(task, count)
        return
    start = last = time.monotonic()
    done = 0.0

    def advance(count: float) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= PLAIN_LINE_EVERY_S:
            last = now
            rate = done / (now - start) / 1e6
            shown = f"{done / 1e9:.2f} of {total / 1e9:.2f} GB, {rate:.1f} MB/s"
            print(f"{label}: {shown}", file=sys.stderr, flush=True)

    yield advance


def _bar(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    class Rate(ProgressColumn):
        def render(self, task: Task) -> str:
            return f"{task.speed:.1f}/s" if task.speed else ""

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
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


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """Shows that a block of unknown length goes on, on standard error.

    On a terminal a spinner with the time; elsewhere a plain line every `PLAIN_LINE_EVERY_S`.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            progress.add_task(label, total=None)
            yield
        return
    ended = threading.Event()
    start = time.monotonic()

    def tell() -> None:
        while not ended.wait(PLAIN_LINE_EVERY_S):
            print(f"{label}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
