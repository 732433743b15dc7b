"""What is told of a launch that failed, and what comes after one that ran out of memory."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from sailplan.run.failure import read_failures
from sailplan.run.paths import RunPaths
from sailplan.supervise.attempt_log import read_attempts
from sailplan.supervise.attempts import MOST_RELAUNCHES
from tests.launcher.support import run
from tests.supervise.support import launch

TWO = ("--launch.processes", "2", "--launch.strategy", "ddp")
BATCH = ("--per_device_train_batch_size", "8")


@pytest.fixture
def out(tmp_path: Path) -> RunPaths:
    """The run's directory."""
    return RunPaths(tmp_path / "out")


def test_user_error_before_training_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    end = launch(tmp_path, "user error while loading", *TWO)
    assert (end.code, end.err) == (4, "error: row 3 is empty; remove it\n")
    assert [path.name for path in tmp_path.iterdir()] == ["run file.yaml"]


def test_bug_before_training_keeps_its_traceback_once(tmp_path: Path) -> None:
    end = launch(tmp_path, "bug while loading", *TWO)
    assert end.code == 1
    assert end.err.startswith("error: rank ")
    assert "ZeroDivisionError: ours\nTraceback" in end.err
    assert end.err.count("Traceback") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run file.yaml"]


def test_report_has_the_real_error_first_and_the_echo_in_one_line(
    tmp_path: Path, out: RunPaths
) -> None:
    end = launch(tmp_path, "first the second", *TWO)
    lines = end.err.splitlines()
    assert end.code == 1
    assert lines[0] == (
        "error: rank 1 failed after step 3 (computing a micro batch): ZeroDivisionError: ours"
    )
    assert lines[1] == "Traceback (most recent call last):"
    assert end.err.count("Traceback") == 1
    [echo] = [line for line in lines if line.startswith("  rank 0: ")]
    assert echo == "  rank 0: lost the connection to the others"
    assert lines[-2] == (f"no checkpoint is whole; `sailplan train {out.path}` begins at step 0")
    assert lines[-1] == f"logs by rank: {out.logs}/rank-0.log to rank-1.log"
    assert [one.kind for one in read_failures(out.failures)] == ["unknown", "connection"]


def test_logs_by_rank_hold_what_each_printed_and_its_traceback(
    tmp_path: Path, out: RunPaths
) -> None:
    for _ in range(2):
        launch(tmp_path, "user error", *TWO)
    text = (out.logs / "rank-1.log").read_text()
    first, second = text.split("==== launch 2, rank 1, ")
    assert first.startswith("==== launch 1, rank 1, ")
    for part in (first, second):
        assert "====\nrank 1 loads\n30 %\ntrains\n" in part
        assert "DataError: row 3 is empty; remove it\n" in part


def test_rank_that_a_signal_ended_is_named_and_is_no_out_of_memory(
    tmp_path: Path, out: RunPaths
) -> None:
    end = launch(tmp_path, "killed", *TWO, "--on_oom", "next_plan")
    assert end.code == 137
    assert end.err.startswith("error: rank 1 was ended by SIGKILL after step")
    [attempt] = read_attempts(out.attempts_file)
    assert (attempt.kind, attempt.exit_code, attempt.next_changed) == ("signal", 137, None)


def test_out_of_memory_goes_to_smaller_micro_batches_and_they_stick(
    tmp_path: Path, out: RunPaths
) -> None:
    end = launch(tmp_path, "out of memory above 2", *BATCH, "--on_oom", "next_plan")
    assert end.code == 0, end.err
    assert "on_oom: goes on from the beginning with micro batch 4 × 2 instead of 8 × 1" in end.err
    batches = [(one.micro_batch, one.accumulation) for one in read_attempts(out.attempts_file)]
    assert batches == [(8, 1), (4, 2), (2, 4)]
    assert "per_device_train_batch_size: 8" in out.run_file.read_text()
    assert "per_device_train_batch_size: 2" in out.train_file.read_text()

    again = launch(tmp_path, "out of memory above 2", *BATCH)
    assert again.code == 0
    assert "begins with per_device_train_batch_size 2, gradient_accumulation_steps 4" in again.out
    other = launch(tmp_path, "out of memory above 8", "--per_device_train_batch_size", "3")
    assert "begins with the values that are written now" in other.out
    assert read_attempts(out.attempts_file)[-1].micro_batch == 3


def test_out_of_memory_without_a_wish_stops_with_the_next_plan_as_advice(
    tmp_path: Path, out: RunPaths
) -> None:
    end = launch(tmp_path, "out of memory above 4", *BATCH, env={"SLURM_JOB_ID": "7"})
    assert end.code == 0  # in a Slurm job it is wished

    end = launch(tmp_path, "out of memory above 1", *BATCH)
    assert end.code == 5
    assert "the next plan: micro batch 2 × 4 instead of 4 × 2\n" in end.err
    assert (
        f"sailplan train {out.path} --per_device_train_batch_size 2 --gradient_accumulation_steps 4"
    ) in end.err


def test_out_of_memory_that_nothing_helps_ends_when_the_ladder_does(
    tmp_path: Path, out: RunPaths
) -> None:
    what, rows = "out of memory whatever is done", 2 ** (MOST_RELAUNCHES + 2)
    flags = ("--on_oom", "next_plan", "--per_device_train_batch_size")
    end = launch(tmp_path, what, *flags, "2")
    assert end.code == 5
    assert "no plan is left that needs less" in end.err
    assert [one.micro_batch for one in read_attempts(out.attempts_file)] == [2, 1]

    out.attempts_file.unlink()
    end = launch(tmp_path, what, *flags, str(rows))
    assert end.code == 5
    assert f"{MOST_RELAUNCHES} launches in a row came no further than step 3" in end.err
    assert len(read_attempts(out.attempts_file)) == MOST_RELAUNCHES + 1


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "code"), [(b"\n", 0), (b"n\n", 5)])
def test_out_of_memory_at_a_terminal_asks(tmp_path: Path, answer: bytes, code: int) -> None:
    run(tmp_path)
    argv = [sys.executable, "-m", "tests.supervise.launch", str(tmp_path / "run file.yaml")]
    argv += ["--run_name", "out of memory above 4", "--launch.cpu", "true", *BATCH]
    main, side = pty.openpty()
    process = subprocess.Popen(argv, stdin=side, stdout=side, stderr=side, start_new_session=True)
    os.close(side)
    text = b""
    while b"go on with it? [Y/n]" not in text:
        text += os.read(main, 65536)
    os.write(main, answer)
    while True:
        try:
            if not os.read(main, 65536):
                break
        except OSError:  # the last process that had this terminal has gone
            break
    assert process.wait(timeout=100) == code
    os.close(main)
