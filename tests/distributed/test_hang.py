"""A rank that hangs is found, named and ended, and nothing is left running: real launches."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.support.plant import planted
from tests.support.rows import chat_rows

Tiny = Callable[[str], Path]

HANG_TIMEOUT_S = 3.0


def hung(
    folder: Path, model: Path, *, strategy: str, processes: int, fault: dict[str, Any], **own: Any
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Trains with a fault until the run ends, and returns how, and the run's directory."""
    out = folder / "out"
    run = {
        "model_name_or_path": str(model),
        "dataset_name": str(chat_rows(folder / "data", 24, images=False)),
        "output_dir": str(out),
        "max_steps": 8,
        "per_device_train_batch_size": 1,
        "bf16": False,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "hang_timeout": HANG_TIMEOUT_S,
        "launch": {"cpu": True, "strategy": strategy, "processes": processes},
        **own,
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(run))
    command = [sys.executable, "-m", "sailplan", "train", str(file)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env=planted(**fault)
    )
    left = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(out) in " ".join(process.info["cmdline"] or ())
    ]
    assert not left, done.stderr
    return done, out


STOPPED = {"what": "stop_in_collator", "after_s": 1.0}
KEPT = {"what": "keep_interpreter_in_collator", "after_s": 1.0}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"what": "sleep_in_collator"}, ["rank 1 hung: waiting for data for"]),
        (STOPPED, ["rank 1 is stopped by a signal: waiting for data for"]),
        ({"what": "leave_out_all_reduce"}, ["rank 1 has left out a collective"]),
        (KEPT, ["rank 1 hung in a call that keeps"]),
    ],
    ids=["sleeps", "stopped", "left out", "keeps the interpreter"],
)
def test_hung_rank_is_named_and_the_run_ended(
    tmp_path: Path, tiny_model: Tiny, fault: dict[str, Any], words: list[str]
) -> None:
    began = time.monotonic()
    fault = {**fault, "rank": 1, "step": 3}
    done, out = hung(tmp_path, tiny_model("llama"), strategy="ddp", processes=2, fault=fault)
    print(fault, time.monotonic() - began, done.stderr)
    print((out / "logs" / "hang.txt").read_text())
    assert done.returncode == 10, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert [word for word in words if word not in line] == [], line
    assert f"sailplan train {out}" in line
