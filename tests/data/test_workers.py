"""Work on ranges of rows in real processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sailplan.data.workers import in_order
from sailplan.errors import DataError


def _all(work: Callable[[range], object], count: int, workers: int | None = 2) -> list[object]:
    return list(in_order(work, count, workers=workers, killed_todo="try one"))


@pytest.mark.parametrize("workers", [1, 2, None])
@pytest.mark.parametrize("count", [0, 1, 128, 1000])
def test_results_come_in_order_of_the_rows(workers: int | None, count: int) -> None:
    def work(rows: range) -> list[int]:
        time.sleep(0.002 if rows.start == 0 else 0)  # the first range ends last
        return list(rows)

    found = _all(work, count, workers)

    assert [row for rows in found for row in rows] == list(range(count))  # type: ignore[attr-defined]


def test_error_is_that_of_the_first_range_and_stops_the_rest(tmp_path: Path) -> None:
    def work(rows: range) -> None:
        (tmp_path / str(rows.start)).touch()
        if rows.start == 256:
            time.sleep(0.1)
        if rows.start >= 256:
            raise DataError(f"range {rows.start}")

    with pytest.raises(DataError, match=r"^range 256$"):
        _all(work, 128_000)
    assert len(list(tmp_path.iterdir())) < 50


def test_killed_worker_is_one_line() -> None:
    def work(rows: range) -> None:
        if rows.start == 256:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(DataError, match=r"was killed, most likely for want of memory; try one$"):
        _all(work, 1000)


def test_workers_end_when_what_they_work_for_is_killed(tmp_path: Path) -> None:
    def work(_: range) -> None:
        (tmp_path / str(os.getpid())).touch()
        time.sleep(0.05)

    parent = multiprocessing.get_context("fork").Process(target=_all, args=(work, 128_000))
    parent.start()
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.01)
    workers = [psutil.Process(int(path.name)) for path in tmp_path.iterdir()]

    parent.kill()
    parent.join()

    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
