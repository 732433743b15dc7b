"""Does work on ranges of rows in forked processes, with results in the order of the rows."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from sailplan.errors import DataError
from sailplan.hardware.detect import detect_cpu_cores

T = TypeVar("T")

RANGE_ROWS = 128
"""Rows that a process is given at once: few enough that the last ranges end together."""

_FEW_ROWS = 96
"""So few are worked on faster than processes are started."""

_IN_FLIGHT = 4
"""Ranges for each process that wait or are worked on, so that none waits for this one."""

_LOOK_EVERY_S = 1.0
"""How often a worker looks whether the process that it works for is still there."""


def in_order(
    work: Callable[[range], T], num_rows: int, *, workers: int | None, killed_todo: str
) -> Iterator[T]:
    """Yields what `work` makes of each range of rows, from the first to the last.

    Args:
        work: Is called with ranges of rows. It and its results travel by fork and pickle.
        num_rows: How many there are.
        workers: Processes; as many as there are cores where not given.
        killed_todo: What to do about a process that was killed.

    Raises:
        DataError: A process was killed.
        Exception: What `work` raised for the first range for which it did; of later ranges, none
            is begun then.
    """
    ranges = [
        range(start, min(start + RANGE_ROWS, num_rows)) for start in range(0, num_rows, RANGE_ROWS)
    ]
    workers = min(workers or detect_cpu_cores().value, len(ranges))
    if workers <= 1 or num_rows <= _FEW_ROWS:
        yield from map(work, ranges)
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("fork"),
        initializer=_begin,
        initargs=(work, os.getpid()),
    )
    try:
        yield from _results(pool, ranges, most=workers * _IN_FLIGHT)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that read rows was killed, most likely for want of memory",
            todo=killed_todo,
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _results(pool: ProcessPoolExecutor, ranges: Sequence[range], *, most: int) -> Iterator[Any]:
    running: deque[Future[Any]] = deque()
    for rows in ranges:
        running.append(pool.submit(_work, rows))
        if len(running) >= most:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


_given: Callable[[range], Any]
"""What a forked process does."""


def _begin(work: Callable[[range], Any], parent: int) -> None:
    global _given
    torch.set_num_threads(1)  # the parent's threads are not there after a fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends this
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _given = work


def _end_with(parent: int) -> None:
    """Ends this process when the one that it works for is gone.

    A pool's workers would wait for ever after a parent that was killed, and with the descriptors
    that they were forked with they would hold the locks that it held.
    """
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)


def _work(rows: range) -> Any:
    return _given(rows)
