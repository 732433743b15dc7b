"""A rank that hangs is found, named and ended, and nothing is left running: real launches."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.support.launch import accelerate_launch, flags
from tests.support.plant import planted
from tests.support.rows import chat_rows

Tiny = Callable[[str], Path]

HANG_TIMEOUT_S = 2.0


def hung(
    folder: Path,
    model: Path,
    *,
    strategy: str,
    processes: int,
    fault: dict[str, Any],
    images: bool = False,
    **own: Any,
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Trains with a fault until the run ends, and returns how, and the run's directory."""
    out = folder / "out"
    run = {
        "model_name_or_path": str(model),
        "dataset_name": str(chat_rows(folder / "data", 24, images=images)),
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


FAULTS = {
    "sleeps": (
        {"what": "sleep_in_collator"},
        "rank 1 hung: waiting for data for {s} s in step 4, in support/plant/faults.py:{line} in "
        "sleep, called from sailplan/data/loss_inputs.py:{line} in __call__; rank 0 waits in "
        "all_gather of",
    ),
    "left out": (
        {"what": "leave_out_all_reduce"},
        "rank 1 has left out a collective, or the others have entered one too many: rank 1 waits "
        "in all_gather of",
    ),
    "stopped": (
        {"what": "stop_in_collator", "after_s": 0.5},
        "rank 1 is stopped by a signal: waiting for data for {s} s in step 4, in "
        "support/plant/faults.py:{line} in stop, called from",
    ),
    "keeps the interpreter": (
        {"what": "keep_interpreter_in_collator", "after_s": 0.5},
        "rank 1 hung in a call that keeps Python's interpreter: waiting for data for {s} s in step "
        "4, in support/plant/faults.py:{line} in keep, called from",
    ),
}
"""What is planted in the second of two ranks, and how the error begins."""


SLOW = ("stopped", "keeps the interpreter")


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in FAULTS]
)
def test_hung_rank_is_named_and_the_run_ended(tmp_path: Path, tiny_model: Tiny, fault: str) -> None:
    planted_fault, words = FAULTS[fault]
    done, out = hung(
        tmp_path,
        tiny_model("llama"),
        strategy="ddp",
        processes=2,
        fault={**planted_fault, "rank": 1, "step": 3},
    )

    assert done.returncode == 10, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
    expected = re.escape(words).replace(r"\{s\}", r"\d+").replace(r"\{line\}", r"\d+")
    assert re.match(f"error: {expected}", line), line
    assert line.endswith(f"; the stacks of all ranks: {out}/logs/hang.txt")
    assert f"`sailplan train {out}` begins at step 0" in done.stderr
    assert "Traceback" not in done.stderr
    page = (out / "logs" / "hang.txt").read_text()
    assert "rank 0, process " in page
    assert "rank 1, process " in page
    for rank in (0, 1):
        assert "sft_vlm.py" in (out / "logs" / f"stacks-rank-{rank}.txt").read_text()
    failure = json.loads((out / "failures" / "rank-1.json").read_text())
    assert (failure["rank"], failure["kind"], failure["exit_code"]) == (1, "hang", 10)
    assert line == f"error: {failure['error']}"


def test_hung_worker_of_a_single_process_is_named_and_the_run_ended(
    tmp_path: Path, tiny_model: Tiny
) -> None:
    done, out = hung(
        tmp_path,
        tiny_model("llama"),
        strategy="single",
        processes=1,
        fault={"what": "sleep_in_worker"},
        dataloader_num_workers=1,
        hang_timeout=1.0,  # the first step may take three times as long
    )

    assert done.returncode == 10, done.stderr
    words = (
        "rank 0 hung: waiting for data for 3 s in step 1, a DataLoader's worker in support/plant"
    )
    assert words in done.stderr
    assert "in sleep" in (out / "logs" / "stacks-rank-0.txt").read_text()


@pytest.mark.slow
def test_hung_rank_under_zero3_is_named_and_the_run_ended(tmp_path: Path, tiny_model: Tiny) -> None:
    done, _ = hung(
        tmp_path,
        tiny_model("qwen2_vl"),
        strategy="zero3",
        processes=2,
        fault={"what": "sleep_in_collator", "rank": 1, "step": 3},
        images=True,
    )

    assert done.returncode == 10, done.stderr
    assert "error: rank 1 hung: waiting for data for" in done.stderr


def test_rank_that_waits_for_work_of_the_first_alone_is_left_in_peace(
    tmp_path: Path, tiny_model: Tiny
) -> None:
    """The first saves for twice `hang_timeout`, and writes all the time."""
    done, out = hung(
        tmp_path,
        tiny_model("llama"),
        strategy="ddp",
        processes=2,
        fault={"what": "save_slowly", "rank": 0, "seconds": 2 * HANG_TIMEOUT_S},
        max_steps=2,
        save_strategy="steps",
        save_steps=2,
        save_first_step=False,
    )

    assert done.returncode == 0, done.stderr
    assert not (out / "ranks").exists()


@pytest.mark.slow
def test_hung_rank_without_our_launcher_is_named_and_the_run_ended(
    tmp_path: Path, tiny_model: Tiny
) -> None:
    values = {
        "model_name_or_path": tiny_model("llama"),
        "dataset_name": chat_rows(tmp_path / "data", 24, images=False),
        "output_dir": tmp_path / "out",
        "max_steps": 8,
        "per_device_train_batch_size": 1,
        "report_to": "none",
        "save_strategy": "no",
        "hang_timeout": HANG_TIMEOUT_S,
    }
    env = planted(what="sleep_in_collator", rank=1, step=3)

    done = accelerate_launch(flags(values), preset="ddp", processes=2, env=env)

    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: rank 1 hung: waiting for data for ")
    assert line.endswith("; the same command goes on from the last whole checkpoint")
    assert "exitcode: 10" in " ".join(done.stderr.replace(" :", ":").split())
