"""One process at work while others wait."""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path

import pytest

from sailplan.data import one_process

_FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize("folder", ["beside", "/sys"], ids=["locks", "no locks"])
@pytest.mark.parametrize("end", ["done", "killed"])
def test_others_wait_until_the_first_is_done_or_killed(
    tmp_path: Path, folder: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(one_process, "PLAIN_LINE_EVERY_S", 0.1)
    path = (Path(folder) if folder == "/sys" else tmp_path) / "entry"
    inside, leave = _FORK.Event(), _FORK.Event()
    said = tmp_path / "said"

    def work() -> None:
        with one_process.one_process(path):
            inside.set()
            leave.wait()
            (tmp_path / "left").touch()

    def wait() -> None:
        with said.open("w") as sys.stderr, one_process.one_process(path, told="waiting"):
            (tmp_path / f"came after the first had left {(tmp_path / 'left').exists()}").touch()

    first, second = _FORK.Process(target=work), _FORK.Process(target=wait)
    first.start()
    inside.wait()
    second.start()
    while not (said.exists() and said.read_text()):
        time.sleep(0.01)
    if end == "done":
        leave.set()
    else:
        first.kill()
    second.join()
    first.join()

    assert (tmp_path / f"came after the first had left {end == 'done'}").exists()
    assert said.read_text() == "waiting\n"
