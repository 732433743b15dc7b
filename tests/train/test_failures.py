"""What a rank's error is: a mistake, no memory, the echo of another rank's end, or a bug."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sailplan.errors import DataError, HangError, OutputError, StoppedError
from sailplan.train.failures import failure_of, kind_of, line_of
from sailplan.train.phase import PHASE


class DistBackendError(RuntimeError):
    """Named as torch's, which a build without distributed lacks."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "oom"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "oom"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't"), "unknown"),
        (RuntimeError("x DefaultCPUAllocator: can't allocate memory: you tried"), "oom"),
        (RuntimeError("x DefaultCPUAllocator: not enough memory: you tried to"), "oom"),
        (MemoryError(), "oom"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom"),
        (OSError(errno.ENOSPC, "No space left on device"), "unknown"),
        (DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:77"), "connection"),
        (RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:5] Read error: Conn"), "connection"),
        (RuntimeError("Connection closed by peer [127.0.0.1]:4711"), "connection"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "unknown"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "unknown"),
        (ZeroDivisionError("division by zero"), "unknown"),
        (DataError("row 3: Connection closed by peer"), "user"),
        (OutputError("the disk is full"), "user"),
        (HangError("rank 1 hangs"), "hang"),
        (StoppedError("stopped at step 3"), "stopped"),
    ],
)
def test_kind_is_told_by_class_and_words(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind


def test_real_allocation_that_fails_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert kind_of(found.value) == "oom"


def clean_up_after_an_error() -> None:
    try:
        raise MemoryError
    finally:
        raise RuntimeError("Connection closed by peer")


def test_kind_is_that_of_what_led_to_an_error() -> None:
    with pytest.raises(RuntimeError) as found:
        clean_up_after_an_error()
    assert kind_of(found.value) == "oom"


def test_line_of_a_workers_error_is_its_own() -> None:
    words = (
        'Caught MemoryError in DataLoader worker process 0.\nTraceback\n  File "a"\nMemoryError: x'
    )
    assert line_of(MemoryError(words)) == "MemoryError: x"
    assert line_of(RuntimeError("first line\nsecond line")) == "RuntimeError: first line"


def test_failure_says_where_it_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PHASE, "name", "starting")
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(MemoryError) as found, PHASE.within("saving"):
        raise MemoryError
    failure = failure_of(found.value)
    assert (failure.rank, failure.kind, failure.phase, failure.exit_code) == (3, "oom", "saving", 5)
    assert failure.traceback.endswith("MemoryError\n")


def end(body: str, **environment: str) -> tuple[int, str, str]:
    script = f"from sailplan.train.errors import report_errors\nwith report_errors():\n    {body}"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )
    return done.returncode, done.stdout, done.stderr


def test_rank_leaves_its_failure_where_a_launcher_asks_for_it(tmp_path: Path) -> None:
    asked = {"SAILPLAN_FAILURES": str(tmp_path), "RANK": "1", "WORLD_SIZE": "2"}
    assert end("raise MemoryError", **asked) == (5, "", "")
    [path] = tmp_path.iterdir()
    assert path.name == "rank-1.json"
    left = json.loads(path.read_text())
    assert (left["kind"], left["exit_code"], left["error"]) == ("oom", 5, "MemoryError")


def test_rank_tells_of_its_failure_where_it_cannot_leave_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = end("raise MemoryError", SAILPLAN_FAILURES=str(tmp_path / "file"))
    assert code == 5
    assert err.endswith("MemoryError\n")


def test_log_holds_lines_and_the_last_of_a_bar(tmp_path: Path) -> None:
    body = """
    import sys
    from pathlib import Path
    from sailplan.train.rank_log import LOG
    print("early")
    LOG.begin(Path(LOGS))
    for share in range(0, 101, 10):
        sys.stderr.write(f"\\r{share} %")
        sys.stderr.flush()
    sys.stderr.write("\\n")
    print("late", sys.stdout.isatty())"""
    body = body.replace("LOGS", repr(str(tmp_path / "logs")))
    code, out, err = end(body, SAILPLAN_FAILURES=str(tmp_path), SAILPLAN_ATTEMPT="3")
    assert (code, out) == (0, "early\nlate False\n")
    assert err.count("%") == 11
    head, *lines = (tmp_path / "logs" / "rank-0.log").read_text().splitlines()
    assert head.startswith("==== launch 3, rank 0, ")
    assert lines == ["early", "100 %", "late False"]
