"""Child processes: what they answer, how they end, and that none is left."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from sailplan import progress
from sailplan.preflight.children import Child, ask
from tests.launcher.support import is_alive


def of(program: str, *, timeout_s: float = 60) -> Child:
    """Asks Python's own module that runs a program's text."""
    return ask("timeit", "-n", "1", "-r", "1", program, environment=os.environ,
               label="trying", timeout_s=timeout_s)  # fmt: skip


def test_child_that_ends_without_an_answer_gives_its_last_error() -> None:
    child = of("raise ImportError('undefined symbol: _ZN3c10')")
    assert child.answer is None
    assert child.code == 1
    assert child.reason == "ImportError: undefined symbol: _ZN3c10"


def test_child_that_crashes_is_told_by_its_signal() -> None:
    child = of("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert child.reason == "it was ended by SIGSEGV"


def test_child_that_hangs_is_ended_with_its_own_children(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    timeout_s = 1.0
    while not (file.exists() and file.read_text()):  # until it has had time to begin
        timeout_s *= 2
        child = ask("tests.preflight.hangs", str(file), environment=os.environ,
                    label="trying", timeout_s=timeout_s)  # fmt: skip
        assert child.reason == "it did not answer in time"
    try:
        orphan = psutil.Process(int(file.read_text()))
    except psutil.NoSuchProcess:
        return
    # Nobody of ours can wait for it; it has been killed, and needs a moment to go.
    psutil.wait_procs([orphan], timeout=60)
    assert not is_alive(orphan.pid)


def test_wait_without_a_terminal_is_told_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert of("1").code == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "PLAIN_LINE_EVERY_S", 0.01)
    assert of("1").code == 0
    assert capsys.readouterr().err.startswith("trying: 0 s\n")
