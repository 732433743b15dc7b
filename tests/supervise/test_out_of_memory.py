"""Memory that runs out while training and while saving: real runs, planted and the kernel's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from sailplan.checkpoint.layout import doubt
from sailplan.checkpoint.manifest import MANIFEST
from sailplan.run.failure import read_failures
from sailplan.run.paths import RunPaths
from sailplan.supervise.attempt_log import Attempt, read_attempts
from tests.support.launch import End, losses
from tests.support.memory_limit import limited
from tests.support.plant import planted
from tests.support.rows import chat_rows

ROWS_OF_STEP = 8
TOKENS_OF_TWO_ROWS = 300
TOKENS_OF_FOUR_ROWS = 520
"""Of two or four rows not more, of twice as many not fewer: each has 87 to 119."""


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Path:
    """A run of four steps that saves every second."""
    values = {
        "model_name_or_path": str(tiny_model("llama")),
        "dataset_name": str(chat_rows(tmp_path / "data", 40, images=False)),
        "output_dir": str(tmp_path / "out"),
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1.0e-3,
        "bf16": False,
        "report_to": "none",
        "on_oom": "next_plan",
        "launch": {"cpu": True},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def train(run_file: Path, fault: dict[str, Any], *flags: object, under: Sequence[str] = ()) -> End:
    """Runs `sailplan train` with a planted fault."""
    command = [*under, sys.executable, "-m", "sailplan", "train", str(run_file)]
    command += map(str, flags)
    env = planted(**fault)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=250, env=env, stdin=subprocess.DEVNULL
    )
    return End(done.returncode, done.stdout, done.stderr)


def launches(run_file: Path) -> list[Attempt]:
    return read_attempts(RunPaths(run_file.parent / "out").attempts_file)


def assert_same_samples(attempts: list[Attempt]) -> None:
    """Each launch has the global batch that was asked for."""
    for one in attempts:
        assert one.micro_batch * one.accumulation * one.processes == ROWS_OF_STEP, one


def test_planted_out_of_memory_goes_on_from_the_last_checkpoint_with_a_smaller_micro_batch(
    run_file: Path,
) -> None:
    whole = run_file.parent / "out" / "checkpoint-2" / MANIFEST
    fault = {"what": "out_of_memory", "rank": 1, "most_tokens": TOKENS_OF_TWO_ROWS, "step": 3}
    fault["behind"] = str(whole)
    flags = ("--launch.processes", 2, "--launch.strategy", "ddp")
    flags += ("--per_device_train_batch_size", 4)
    end = train(run_file, fault, *flags)
    assert end.code == 0, end.err
    lines = [line for line in end.err.splitlines() if line.startswith(("error: ", "on_oom: "))]
    assert lines == [
        "error: rank 1 had no memory after step 3 (computing a micro batch): "
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.",
        "on_oom: goes on from checkpoint-2 with micro batch 2 × 2 instead of 4 × 1",
    ]
    assert "Traceback" not in end.err
    first, second = launches(run_file)
    assert_same_samples([first, second])
    assert (first.kind, first.step, first.exit_code) == ("oom", 3, 5)
    assert (second.kind, second.step, second.micro_batch) == ("finished", 4, 2)
    out = run_file.parent / "out"
    # The third step was made twice, of the same samples: with four rows at once, and with two.
    found = losses(out)
    assert len(found) == 5
    assert found[3] == pytest.approx(found[2], rel=1e-4)
    assert not (out / "failures").exists()
    texts = [(out / "logs" / f"rank-{rank}.log").read_text() for rank in (0, 1)]
    assert "CUDA out of memory" in texts[1]
    assert all(text.count("====\n") == 2 for text in texts)

    plan = [sys.executable, "-m", "sailplan", "train", str(run_file), *map(str, flags), "--dry-run"]
    done = subprocess.run(plan, capture_output=True, text=True, timeout=100, check=True)
    assert "begins with per_device_train_batch_size 2, gradient_accumulation_steps 2" in done.stderr
    assert "\nper_device_train_batch_size: 2\n" in done.stdout


def test_kernels_own_out_of_memory_goes_to_a_smaller_micro_batch(run_file: Path) -> None:
    # Eight rows take far more than the limit is, four nothing.
    fault = {"what": "eat_memory", "most_tokens": TOKENS_OF_FOUR_ROWS, "mib_of_token": 32}
    with limited(3 << 30) as under:
        end = train(run_file, fault, "--per_device_train_batch_size", 8, under=under)
    assert end.code == 0, end.err
    assert "error: the kernel ended rank 0, for want of memory, after step 0" in end.err
    assert "on_oom: goes on from the beginning with micro batch 4 × 2 instead of 8 × 1" in end.err
    attempts = launches(run_file)
    assert_same_samples(attempts)
    assert [one.kind for one in attempts] == ["oom", "finished"]


def test_out_of_memory_while_saving_leaves_the_checkpoint_whole_and_saves_in_shards(
    run_file: Path,
) -> None:
    fault = {"what": "out_of_memory_in_save", "step": 4, "unless_sharded": True}
    flags = ("--launch.processes", 2, "--launch.strategy", "zero3")
    end = train(run_file, fault, *flags, "--per_device_train_batch_size", 4)
    assert end.code == 0, end.err
    assert "(saving): OutOfMemoryError: CUDA out of memory." in end.err
    assert "on_oom: goes on from checkpoint-2 with checkpoints in shards (save_sharded)" in end.err
    out = RunPaths(run_file.parent / "out")
    assert [doubt(one, run=None) for one in out.checkpoints()] == [None, None]
    old, new = out.checkpoints()
    assert (old / "model.safetensors").is_file()
    assert not (new / "model.safetensors").exists()
    assert len(list((new / "global_step4").glob("zero_pp_rank_*_model_states.pt"))) == 2
    assert [one.micro_batch for one in launches(run_file)] == [4, 4]


@pytest.mark.slow
def test_out_of_memory_while_saving_without_a_cure_stops_with_the_old_checkpoint_whole(
    run_file: Path,
) -> None:
    fault = {"what": "out_of_memory_in_save", "step": 4}
    end = train(run_file, fault)
    out = RunPaths(run_file.parent / "out")
    assert end.code == 5
    assert "what would make the save fit: " in end.err
    assert f"last whole checkpoint: {out.checkpoint(2)}; " in end.err
    assert doubt(out.checkpoint(2), run=None) is None
    assert json.loads(out.state_file.read_text())["state"] == "failed"
    assert [(one.rank, one.phase) for one in read_failures(out.failures)] == [(0, "saving")]

    again = train(run_file, {"what": "out_of_memory_in_save", "step": 100})
    assert again.code == 0, again.err
    assert f"goes on from {out.checkpoint(2)}" in again.out
