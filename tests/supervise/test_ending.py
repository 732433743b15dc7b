"""Which rank failed first, why, and whether memory had run out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from sailplan.run.failure import Failure, in_order, write_failure, write_kills
from sailplan.run.paths import RunPaths
from sailplan.supervise.ending import Ending, ending_of

KILLED: dict[str, Any] = {"kind": "signal", "error": "SIGKILL", "exit_code": 137}


def failure(rank: int, kind: Any, time: float = 1.0, **fields: Any) -> Failure:
    values = {"error": f"error of {rank}", "exit_code": 1, **fields}
    return Failure(rank=rank, kind=kind, time=time, **values)


def end(folder: Path, *failures: Failure, kills: int = 0, code: int = 1) -> Ending:
    for one in failures:
        write_failure(folder / "left", one)
    return ending_of(
        code, folder / "left", RunPaths(folder), since=time.time() - 5, began=True, kills=kills
    )


def test_real_error_comes_before_an_earlier_echo(tmp_path: Path) -> None:
    ranks = (failure(0, "connection", 1.0), failure(1, "unknown", 3.0), failure(2, "oom", 2.0))
    assert [one.rank for one in end(tmp_path, *ranks).failures] == [2, 1, 0]


def test_rank_that_the_launcher_ended_is_an_echo() -> None:
    ended = failure(0, "signal", 1.0, error="SIGTERM")
    assert in_order([ended, failure(1, "user", 2.0)])[0].rank == 1


def test_exit_code_is_that_of_the_real_error(tmp_path: Path) -> None:
    ranks = (failure(0, "connection"), failure(1, "user", 2.0, exit_code=8))
    assert end(tmp_path, *ranks, code=1).code == 8


@pytest.mark.parametrize("code", [130, 143])
def test_launcher_that_was_asked_to_stop_has_no_failure(tmp_path: Path, code: int) -> None:
    found = end(tmp_path, failure(0, "connection"), code=code)
    assert (found.kind, found.first, found.code) == ("interrupted", None, code)


def test_first_failure_of_a_rank_stays(tmp_path: Path) -> None:
    found = end(tmp_path, failure(0, "oom", 1.0), failure(0, "unknown", 2.0))
    assert found.kind == "oom"


def test_killed_rank_is_out_of_memory_where_its_own_machine_counted_one(tmp_path: Path) -> None:
    write_kills(tmp_path / "left", 1)
    found = end(tmp_path, failure(0, "connection"), failure(1, time=2.0, **KILLED))
    assert (found.kind, found.code, found.by_kernel) == ("oom", 5, True)


def test_killed_rank_is_out_of_memory_where_the_kernel_counted_one(tmp_path: Path) -> None:
    found = end(tmp_path, failure(0, "connection"), failure(1, time=2.0, **KILLED), kills=1)
    assert (found.kind, found.code, found.by_kernel, found.of_host) == ("oom", 5, True, True)
    assert found.first is not None
    assert found.first.rank == 1


def test_killed_rank_is_no_out_of_memory_else(tmp_path: Path) -> None:
    found = end(tmp_path, failure(1, **KILLED), kills=0)
    assert (found.kind, found.code, found.by_kernel) == ("signal", 137, False)


def test_killed_worker_of_a_rank_is_out_of_memory_too(tmp_path: Path) -> None:
    words = "RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed."
    assert end(tmp_path, failure(0, "unknown", error=words), kills=1).kind == "oom"


def test_user_error_stays_one_whatever_the_kernel_did(tmp_path: Path) -> None:
    found = end(tmp_path, failure(0, "user", exit_code=4), kills=1)
    assert (found.kind, found.by_kernel) == ("user", False)


def test_killed_first_rank_with_a_half_written_checkpoint_was_saving(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-4").mkdir()
    assert end(tmp_path, failure(0, **KILLED), kills=1).place == "saving"


def test_killed_rank_that_had_said_that_it_saves_was_saving(tmp_path: Path) -> None:
    beat = '{"phase": "saving", "step": 4, "moved_at": %f}'
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "rank-1.json").write_text(beat % time.time())
    found = end(tmp_path, failure(1, **KILLED), kills=1)
    assert (found.place, found.step) == ("saving", 4)


@pytest.mark.parametrize(
    ("phase", "place"),
    [
        ("computing a micro batch", "training"),
        ("saving", "saving"),
        ("computing held-out rows", "evaluating"),
        ("evaluating", "evaluating"),
    ],
)
def test_place_is_told_by_the_phase(tmp_path: Path, phase: str, place: str) -> None:
    assert end(tmp_path, failure(0, "oom", phase=phase)).place == place
