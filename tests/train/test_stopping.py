"""A run that is asked to stop, at any moment and by anything: it saves, exits with 75, goes on.

The moment is caught exactly: a planted function sends the signal, or makes the stop file, from
within the rank.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sailplan.run.metrics import read_metrics
from sailplan.run.state import read_state
from tests.support.killed import STRATEGIES, curve, launched, run_file, whole
from tests.support.launch import ENTRY, ROOT, flags, free_port
from tests.support.plant import planted
from tests.support.rows import chat_rows

BOUND_S = 30.0
"""An end within the shortest grace that schedulers give."""


def values(folder: Path, model: Path, **more: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model),
        "dataset_name": str(chat_rows(folder / "data", 40, images=False)),
        "output_dir": str(folder / "out"),
        "max_steps": 400,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "dataloader_num_workers": 1,
        "bf16": False,
        "logging_steps": 1,
        "save_steps": 400,
        "report_to": "none",
        **more,
    }


def stopped(file: Path, fault: dict[str, Any]) -> str:
    """Runs until the fault asks it to stop; returns what it printed."""
    with launched(file, "--no-preflight", env=planted(fault)) as run:
        assert run.end() == 75, run.text[-4000:]
        assert run.gone(timeout=5) == []
        assert "Traceback" not in run.text
        return run.text


def evaluated(out: Path) -> list[tuple[int, float]]:
    """Returns step and loss of each evaluation that was logged."""
    records = read_metrics(out / "metrics.jsonl")
    return [(record["step"], record["eval_loss"]) for record in records if "eval_loss" in record]


@pytest.mark.parametrize(
    ("moment", "to"),
    [
        ("import", "SIGTERM:launcher"),
        pytest.param("encoding", "SIGUSR1:rank", marks=pytest.mark.slow),
        pytest.param("loading", "SIGINT:launcher", marks=pytest.mark.slow),
        pytest.param("import", "SIGUSR1:accelerate", marks=pytest.mark.slow),
        pytest.param("loading", "SIGTERM:rank", marks=pytest.mark.slow),
    ],
)
def test_run_that_is_stopped_before_it_trains_leaves_nothing(
    tmp_path: Path, tiny_model: Callable[[str], Path], moment: str, to: str
) -> None:
    file = run_file(
        tmp_path / "run.yaml", values(tmp_path, tiny_model("llama")), strategy="single", ranks=1
    )
    stopped(file, {"what": f"stop_in_{moment}", "to": to})
    assert not (tmp_path / "out").exists()


def test_run_that_is_stopped_anywhere_goes_on_as_if_it_had_not_been(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    settings = values(
        tmp_path,
        tiny_model("llama"),
        max_steps=8,
        eval_strategy="steps",
        eval_steps=4,
        eval_size=12,
        per_device_eval_batch_size=2,
        save_steps=3,
    )
    file = run_file(tmp_path / "run.yaml", settings, strategy="single", ranks=1)
    undisturbed = tmp_path / "undisturbed"
    with launched(file, "--no-preflight", "--output_dir", str(undisturbed)) as run:
        assert run.end() == 0, run.text[-4000:]

    # The first save comes after the first step; in the next one it is asked, and saves no other.
    out = tmp_path / "out"
    text = stopped(file, {"what": "stop_in_save", "number": 2, "to": "SIGTERM:rank"})
    assert "stopped at step 3 of 8, as asked (SIGTERM); go on with: sailplan train" in text
    assert whole(out)[-1] == 3
    state = read_state(out / "state.json")
    assert state is not None
    assert (state.state, state.step, state.exit_code) == ("stopped", 3, 75)

    # After step 4 the held-out rows are looked at, six batches: in the second one it ends.
    text = stopped(file, {"what": "stop_in_evaluation", "number": 2, "to": "SIGINT:rank"})
    assert "stopped at step 4 of 8" in text
    assert whole(out)[-1] == 4
    assert evaluated(out) == []

    # The last step: training is over, but not the run.
    text = stopped(file, {"what": "stop_in_step", "number": 4, "to": "SIGUSR1:rank"})
    assert "stopped at step 8 of 8, as asked (SIGUSR1)" in text
    assert [step for step, _ in evaluated(out)] == [4]

    with launched(file, "--no-preflight") as run:
        assert run.end() == 0, run.text[-4000:]
    assert curve(out) == curve(undisturbed)
    assert evaluated(out) == evaluated(undisturbed)
    saved = (out / "model.safetensors").read_bytes()
    assert saved == (undisturbed / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("strategy", "moment", "rank", "to"),
    [
        ("ddp", "step", 1, "SIGUSR1:rank"),
        pytest.param("ddp", "save", 1, "SIGTERM:rank", marks=pytest.mark.slow),
        pytest.param("zero2", "step", 1, "SIGTERM:launcher", marks=pytest.mark.slow),
        pytest.param("zero3", "save", 0, "SIGINT:launcher", marks=pytest.mark.slow),
        pytest.param("zero3", "step", 1, "SIGUSR1:rank", marks=pytest.mark.slow),
    ],
)
def test_ranks_agree_on_the_step_where_one_is_asked_to_stop(
    tmp_path: Path,
    tiny_model: Callable[[str], Path],
    strategy: str,
    moment: str,
    rank: int,
    to: str,
) -> None:
    settings = values(tmp_path, tiny_model("llama"))
    file = run_file(tmp_path / "run.yaml", settings, strategy=strategy, ranks=STRATEGIES[strategy])
    number = 3 if moment == "step" else 1
    text = stopped(file, {"what": f"stop_in_{moment}", "number": number, "rank": rank, "to": to})
    step = 3 if moment == "step" else 1
    assert f"stopped at step {step} of 400" in text
    assert whole(tmp_path / "out")[-1] == step


@pytest.mark.slow
def test_stop_file_stops_all_ranks(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    settings, out = values(tmp_path, tiny_model("llama")), tmp_path / "out"
    file = run_file(tmp_path / "run.yaml", settings, strategy="ddp", ranks=2)
    text = stopped(file, {"what": "stop_in_step", "number": 3, "rank": 1, "to": str(out / "STOP")})
    assert f"stopped at step {whole(out)[-1]} of 400, as asked (the stop file)" in text
    assert not (out / "STOP").exists()


@pytest.mark.parametrize("victim", ["accelerate", pytest.param("launcher", marks=pytest.mark.slow)])
def test_ranks_whose_launcher_is_killed_save_and_end(
    tmp_path: Path, tiny_model: Callable[[str], Path], victim: str
) -> None:
    settings = values(tmp_path, tiny_model("llama"))
    file = run_file(tmp_path / "run.yaml", settings, strategy="ddp", ranks=2)
    fault = {"what": "stop_in_step", "number": 3, "rank": 0, "to": f"SIGKILL:{victim}"}
    with launched(file, "--no-preflight", env=planted(fault)) as run:
        assert run.end() == (75 if victim == "accelerate" else -signal.SIGKILL), run.text[-4000:]
        assert run.gone(timeout=BOUND_S) == []
        assert whole(tmp_path / "out")[-1] >= 3, run.text[-4000:]


def test_bare_launcher_that_is_terminated_with_its_group_saves(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    """As a scheduler does it: every process gets the signal, DataLoader workers too."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    command += ["--config_file", str(ROOT / "accelerate_configs" / "ddp.yaml")]
    command += ["--main_process_port", str(free_port()), "-m", ENTRY, "--use_cpu"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *flags(values(tmp_path, tiny_model("llama")))],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )
    everyone: list[psutil.Process] = []
    try:
        while process.poll() is None:
            metrics = out / "metrics.jsonl"
            steps = metrics.read_text().splitlines() if metrics.exists() else []
            if len(steps) >= 3 and json.loads(steps[-1]).get("step", 0) >= 3:
                break
            time.sleep(0.005)  # the ranks need the cores
        everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
        assert len(everyone) >= 5, log.read_text()[-4000:]  # workers are there
        for one in reversed(everyone):
            one.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    finally:
        _, left = psutil.wait_procs(everyone, timeout=5)
        for one in left:
            one.kill()
    assert not left
    text = log.read_text()
    assert f"as asked (SIGTERM); go on with: sailplan train {out}" in text, text[-4000:]
    assert whole(out)
