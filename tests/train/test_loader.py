"""Workers are chosen for the machine and the data, and never for more than /dev/shm holds."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sailplan.hardware.detect import Detected
from sailplan.train.loader import Demand, choose_workers
from sailplan.train.shared_memory import SHARED_MEMORY, InFlight, room_for
from tests.support.launch import ENTRY, Entry, flags
from tests.support.rows import chat_rows

MB = 1 << 20


def demand(**changes: Any) -> Demand:
    known = {
        "cores": Detected(value=32, reason="the affinity mask"),
        "ranks": 4,
        "threads": 1,
        "on_gpu": True,
        "load_s": 0.2,
        "epoch_batches": 1000.0,
    }
    return Demand(**(known | changes))


@pytest.mark.parametrize(
    ("changes", "workers", "reason"),
    [
        ({}, 7, "a micro batch takes 200 ms to load; of 32 cores for 4 ranks (the affinity mask)"),
        ({"ranks": 1}, 8, "takes 200 ms to load; of 32 cores (the"),
        ({"needed_s": 0.11}, 3, "takes 200 ms to load and, as planned, 110 ms to compute; of 32"),
        ({"needed_s": 9.0}, 1, "as planned, 9000 ms to compute"),
        ({"ranks": 32}, 1, "of 32 cores for 32 ranks"),
        ({"load_s": 0.001, "epoch_batches": 1e5}, 1, "a micro batch takes 1.0 ms to load"),
        ({"load_s": 0.001, "epoch_batches": 1e5, "on_gpu": False}, 0, "takes 1.0 ms to load"),
        ({"epoch_batches": 4.0}, 0, "an epoch takes 0.80 s to load"),
        ({"load_s": math.nan, "epoch_batches": math.inf}, 7, "rows are encoded while training; of"),
        ({"on_gpu": False, "threads": 8}, 0, "training itself uses all of 32 cores for 4 ranks"),
        ({"on_gpu": False, "threads": 6}, 2, "a micro batch takes 200 ms to load; of 32 cores"),
    ],
)
def test_workers_follow_from_cores_ranks_and_what_loading_takes(
    changes: dict[str, Any], workers: int, reason: str
) -> None:
    found = choose_workers(demand(**changes))
    assert found.value == workers
    assert reason in found.reason


@pytest.mark.parametrize(
    ("free_mb", "workers", "ahead"),
    [(1000, 4, 2), (225, 4, 2), (224, 4, 1), (125, 4, 1), (124, 3, 1), (60, 1, 1), (49, 0, 2)],
)
def test_less_shared_memory_leaves_less_ahead_then_fewer_workers_then_none(
    free_mb: int, workers: int, ahead: int
) -> None:
    batches = InFlight(batch_bytes=20 * MB, held=1)
    room = room_for(4, 2, batches, free_mb * MB)
    assert (room.workers, room.ahead) == (workers, ahead)
    assert bool(room.why) is (free_mb < 225)
    if room.why:
        assert room.why.startswith(f"/dev/shm has {free_mb * MB / 1e6:.1f} MB for this rank, and 4")
        assert "batches of 21.0 MB need 235.9 MB; start the container with --shm-size" in room.why


def test_evaluation_has_workers_of_its_own_at_the_same_time() -> None:
    assert InFlight(batch_bytes=10, held=2, loaders=2).bytes_of(3, 2) == 140
    assert InFlight(batch_bytes=10, held=2, loaders=2).bytes_of(0, 2) == 0


@pytest.fixture
def run_of(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Callable[..., dict[str, Any]]:
    data = chat_rows(tmp_path / "data", 16)

    def make(name: str, **changes: Any) -> dict[str, Any]:
        return {
            "model_name_or_path": tiny_model("qwen2_vl"),
            "dataset_name": data,
            "output_dir": tmp_path / name,
            "per_device_train_batch_size": 4,
            "num_train_epochs": 2,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            **changes,
        }

    return make


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_number_of_workers_changes_neither_the_training_nor_what_is_counted(
    tmp_path: Path, run_of: Callable[..., dict[str, Any]], entry: Entry
) -> None:
    counted = ("loss", "grad_norm", "num_tokens", "padding_share")
    curves = []
    for workers in (None, 0, 3):
        changes = {} if workers is None else {"dataloader_num_workers": workers}
        lora = {"use_peft": True, "lora_dropout": 0.3, "learning_rate": 1e-2}
        end = entry(flags(run_of(f"out-{workers}", **lora, **changes)))
        assert end.code == 0, end.err
        chose = re.search(r"^dataloader_num_workers: 0, an epoch takes 0\.\d+ s", end.out, re.M)
        assert bool(chose) is (workers is None)
        records = [r for r in records_of(tmp_path / f"out-{workers}") if "loss" in r]
        curves.append([[record[name] for name in counted] for record in records])
    assert len(curves[0]) == 8
    assert curves[0] == curves[1] == curves[2]


def can_mount() -> bool:
    """Whether this user may mount in a namespace of its own."""
    try:
        probe = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(SHARED_MEMORY)]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_mount(), reason="mounting a small /dev/shm needs root and unshare")
def test_run_in_a_container_with_little_shared_memory_finishes_and_says_why(
    tmp_path: Path, run_of: Callable[..., dict[str, Any]]
) -> None:
    values = run_of("out", dataloader_num_workers=4)
    train = [sys.executable, "-m", ENTRY, *flags(values)]
    mounted = f'mount -t tmpfs -o size=8m tmpfs {SHARED_MEMORY} && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mounted, "sh", *train],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ.copy(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line for line in done.stdout.splitlines() if "for want of shared memory" in line]
    assert len(said) == 1
    assert re.match(
        r"dataloader_num_workers: [123], dataloader_prefetch_factor: 1 for want of shared memory: "
        r"/dev/shm has 8\.\d MB for this rank, and 4 workers with batches of 1\.\d MB need "
        r"1\d\.\d MB; start the container with --shm-size=16g ",
        said[0],
    )
    assert "saved the model" in done.stdout
