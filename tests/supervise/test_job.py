"""What a Slurm job does before and after a launch, by what the launch has left."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from sailplan.errors import TrainingError
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.run.failure import Failure, write_failure
from sailplan.run.state import RunState, read_state, write_state
from sailplan.supervise.attempt_log import (
    Attempt,
    append_attempts,
    num_fruitless,
    num_in_vain,
    read_attempts,
)
from sailplan.supervise.ending import Ending
from sailplan.supervise.job import TrainingJob, Word, next_word, settled_code


def attempt(kind: str, checkpoint: int = 0, job: int | None = 7) -> Attempt:
    return Attempt(
        number=1,
        started_at=0.0,
        ended_at=1.0,
        device="cpu",
        strategy="ddp",
        processes=2,
        micro_batch=1,
        accumulation=1,
        exit_code=1,
        kind=kind,
        error="rank 1 said why",
        checkpoint=checkpoint,
        job=job,
    )


@pytest.mark.parametrize(
    ("ends", "count"),
    [
        ([], 0),
        ([("unknown", 0)], 1),
        ([("unknown", 0), ("signal", 0), ("lost", 0)], 3),
        ([("unknown", 10), ("unknown", 20), ("unknown", 30)], 1),
        ([("unknown", 10), ("unknown", 10), ("hang", 10)], 3),
        ([("unknown", 10), ("stopped", 10), ("unknown", 10)], 2),
        ([("unknown", 10), ("unknown", 10), ("stopped", 20)], 0),
        ([("unknown", 0), ("finished", 0)], 0),
    ],
)
def test_fruitless_launches_are_those_since_the_last_newer_checkpoint(
    ends: list[tuple[str, int]], count: int
) -> None:
    assert num_fruitless([attempt(kind, step) for kind, step in ends]) == count


def test_launches_in_vain_are_all_that_left_no_newer_checkpoint() -> None:
    ends = [("stopped", 5), ("stopped", 5), ("interrupted", 5), ("unknown", 5)]
    assert num_in_vain([attempt(kind, step) for kind, step in ends]) == 3
    assert num_in_vain([attempt("stopped", step) for step in (5, 6, 7)]) == 0


def state(name: Any, why: str = "", **fields: Any) -> RunState:
    return RunState(
        state=name,
        step=3,
        max_steps=9,
        why=why,
        pid=os.getpid(),
        host=socket.gethostname(),
        started_at=time.time(),
        updated_at=time.time(),
        **fields,
    )


def failure(kind: Any, code: int = 1, error: str = "it broke") -> Failure:
    return Failure(rank=1, kind=kind, error=error, exit_code=code)


@pytest.mark.parametrize(
    ("code", "said", "failures", "asked", "settled"),
    [
        (0, state("finished"), [], False, 0),
        (143, state("finished"), [failure("connection")], False, 0),
        (143, state("stopped"), [failure("connection")], False, 75),
        (143, state("running"), [failure("unknown", 8), failure("connection")], False, 8),
        (143, state("starting"), [failure("stopped", 75)], True, 75),
        (143, state("running"), [failure("signal", 143, "SIGTERM")], True, 75),
        (143, state("running"), [], False, 1),
        (0, state("running"), [], False, 1),
        (137, None, [], False, 137),
    ],
)
def test_code_is_what_the_ranks_say_rather_than_what_killed_them(
    code: int, said: RunState | None, failures: list[Failure], asked: bool, settled: int
) -> None:
    assert settled_code(code, said, failures, asked=asked) == settled


def ending(kind: str, code: int) -> Ending:
    left = () if kind in ("finished", "stopped") else (failure(kind, code),)
    return Ending(code=code, began=True, failures=left)


@pytest.mark.parametrize(
    ("kind", "code", "asked", "by_hand", "fruitless", "word"),
    [
        ("finished", 0, True, False, 0, "finished"),
        ("stopped", 75, True, True, 0, "requeue"),
        ("stopped", 75, False, True, 0, "stopped"),
        ("stopped", 75, True, False, 10, "requeue"),
        ("stopped", 75, True, False, 11, "failed"),
        ("stopped", 75, False, False, 0, "requeue"),
        ("unknown", 1, False, False, 3, "requeue"),
        ("unknown", 1, False, False, 4, "failed"),
        ("unknown", 1, True, False, 4, "requeue"),
        ("hang", 10, False, False, 1, "requeue"),
        ("user", 2, False, False, 1, "failed"),
        ("oom", 5, False, False, 4, "again"),
        ("oom", 5, False, False, 5, "failed"),
    ],
)
def test_next_word_follows_from_the_end(
    kind: str, code: int, asked: bool, by_hand: bool, fruitless: int, word: Word
) -> None:
    found = next_word(
        ending(kind, code),
        asked=asked,
        by_hand=by_hand,
        num_fruitless=fruitless,
        num_in_vain=fruitless,
        max_restarts=3,
    )
    assert found == word


@pytest.fixture
def job(tmp_path: Path) -> TrainingJob:
    path = tmp_path / "run.yaml"
    path.write_text(f"model_name_or_path: a/b\ndataset_name: c/d\noutput_dir: {tmp_path}/out\n")
    (tmp_path / "out").mkdir()
    return TrainingJob(run=Run.from_file(path), job_id=7, num_restarts=1, max_restarts=2)


def test_begin_takes_away_what_was_for_the_launch_before(job: TrainingJob) -> None:
    paths = RunDirectory.of(job.run)
    paths.stop_file.touch()
    write_failure(paths.failures, failure("unknown"))
    append_attempts(paths.attempts_file, [attempt("unknown")])
    assert job.begin() == 2
    assert not paths.stop_file.exists()
    assert not paths.failures.exists()
    found = read_state(paths.state_file)
    assert found is not None
    assert found.state == "starting"


@pytest.mark.parametrize(("was_asked", "kind"), [(False, "lost"), (True, "interrupted")])
def test_begin_after_a_launch_without_a_word_counts_it(
    job: TrainingJob, was_asked: bool, kind: str
) -> None:
    paths = RunDirectory.of(job.run)
    write_state(paths.state_file, state("running"))
    if was_asked:
        paths.stop_file.touch()
    assert job.begin() == 2
    [lost] = read_attempts(paths.attempts_file)
    assert (lost.kind, lost.step, lost.job) == (kind, 3, 7)


def test_launches_of_a_damaged_file_are_those_that_can_be_read(job: TrainingJob) -> None:
    file = RunDirectory.of(job.run).attempts_file
    file.write_bytes(b"\xff\xfe\n")
    append_attempts(file, [attempt("unknown")])
    assert [one.kind for one in read_attempts(file)] == ["unknown"]


def test_begin_beyond_the_cap_says_what_failed_last(job: TrainingJob) -> None:
    paths = RunDirectory.of(job.run)
    append_attempts(paths.attempts_file, [attempt("unknown")] * 3)
    with pytest.raises(TrainingError, match=r"3 launches in a row.*max_restarts is 2.*said why"):
        job.begin()
    assert not paths.state_file.exists()


def test_begin_of_another_job_begins_to_count_anew(job: TrainingJob) -> None:
    paths = RunDirectory.of(job.run)
    append_attempts(paths.attempts_file, [attempt("unknown", job=6)] * 3)
    assert job.begin() == 4
