"""A run that goes on is one run for TensorBoard, W&B and its own metrics."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.run.metrics import read_metrics
from tests.support.launch import ENTRY, flags
from tests.support.rows import chat_rows

HAS_WANDB = importlib.util.find_spec("wandb") is not None
VARIABLES = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR", "TENSORBOARD_LOGGING_DIR")


def train(values: Mapping[str, Any], **variables: str) -> None:
    command = [sys.executable, "-m", ENTRY, "--use_cpu", *flags(dict(values))]
    env = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    env |= {"TESTS_SHOW_TRACKERS": "1", **variables}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    """A run of four steps that loses the last two, goes on from step 2 and does six."""
    folder = tmp_path_factory.mktemp("twice")
    out = folder / "out"
    values = {
        "model_name_or_path": tiny_model("llama"),
        "dataset_name": chat_rows(folder / "data", 8, images=False),
        "output_dir": out,
        "per_device_train_batch_size": 1,
        "logging_steps": 1,
        "save_steps": 2,
        "eval_size": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_generation_tokens": 4,
        "report_to": ["tensorboard", *(["wandb"] if HAS_WANDB else [])],
    }
    train({**values, "max_steps": 4})
    train({**values, "max_steps": 6, "resume_from_checkpoint": out / "checkpoint-2"})
    return out


def test_tensorboard_shows_one_curve_without_what_was_given_up(twice: Path) -> None:
    curves = EventAccumulator(str(twice / "tensorboard"))
    curves.Reload()
    losses = curves.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3, 4, 5, 6]
    lines = map(json.loads, (twice / "metrics.jsonl").read_text().splitlines())
    (went_on,) = (line["time"] for line in lines if line.get("resumed"))
    assert losses[1].wall_time < went_on <= losses[2].wall_time + 0.001
    assert not (twice / "runs").exists()


def test_tensorboard_has_every_metric_that_is_recorded(twice: Path) -> None:
    curves = EventAccumulator(str(twice / "tensorboard")).Reload()
    shown = {
        (tag, event.step): event.value
        for tag in curves.Tags()["scalars"]
        for event in curves.Scalars(tag)
    }
    recorded = {
        ("eval/" + name[5:] if name.startswith("eval_") else "train/" + name, record["step"]): value
        for record in read_metrics(twice / "metrics.jsonl")
        for name, value in record.items()
        if name not in ("step", "time")
    }
    assert ("eval/loss", 6) in recorded
    assert shown == pytest.approx(recorded, rel=1e-5, nan_ok=True)


def test_answers_of_steps_that_are_done_again_are_written_again(twice: Path) -> None:
    curves = EventAccumulator(str(twice / "tensorboard")).Reload()
    texts = [tag for tag in curves.Tags()["tensors"] if tag.startswith("held_out_answers/")]
    assert [{event.step for event in curves.Tensors(tag)} for tag in texts] == [{2, 4, 6}] * 2
    lines = map(json.loads, (twice / "generations.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines] == [2, 2, 4, 4, 4, 4, 6, 6]


def test_metrics_are_one_series_without_what_was_given_up(twice: Path) -> None:
    records = read_metrics(twice / "metrics.jsonl")
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4, 5, 6]
    lines = [json.loads(line) for line in (twice / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("resumed")] == [2]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 3, 4, 5, 6]


@pytest.mark.skipif(not HAS_WANDB, reason="wandb is not installed; it is no requirement")
def test_wandb_has_one_id_and_writes_into_the_run_directory(twice: Path) -> None:
    kept = json.loads((twice / "trackers.json").read_text())["wandb"]
    started = sorted((twice / "wandb").glob("offline-run-*"))
    tables = [len(list(path.rglob("held_out_answers*.table.json"))) for path in started]
    assert tables == [2, 2]
    assert [path.name.rpartition("-")[2] for path in started] == [kept, kept]


def make(out: Path, *trackers: str) -> Any:
    from sailplan.train.arguments import training_arguments
    from sailplan.train.trackers import OneTrackedRun

    run = Run.from_flags(["--output_dir", str(out), "--report_to", "none", "--use_cpu"])
    args, _ = training_arguments(run)
    args.report_to = list(trackers)
    return OneTrackedRun(run, args, None), args


def begin(tracked: Any, args: Any) -> None:
    from transformers import TrainerControl, TrainerState

    tracked.on_init_end(args, TrainerState(), TrainerControl())
    tracked.on_train_begin(args, TrainerState(), TrainerControl())


@pytest.mark.parametrize(
    ("tracker", "variable"), [("wandb", "WANDB_RUN_ID"), ("comet_ml", "COMET_EXPERIMENT_KEY")]
)
def test_id_is_the_same_from_start_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str, variable: str
) -> None:
    for name in (*VARIABLES, variable):
        monkeypatch.delenv(name, raising=False)
    tmp_path.joinpath("out").mkdir()
    ids = []
    for _ in range(2):
        tracked, args = make(tmp_path / "out", tracker)
        ids.append(os.environ[variable])
        begin(tracked, args)
        assert variable not in os.environ
    assert ids[0] == ids[1]
    assert len(ids[0]) == {"wandb": 8, "comet_ml": 32}[tracker]


def test_what_the_user_has_set_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {name: f"{tmp_path}/{name}" for name in VARIABLES}
    for name, value in written.items():
        monkeypatch.setenv(name, value)
    tracked, args = make(tmp_path / "out", "wandb", "tensorboard")
    assert {name: os.environ[name] for name in VARIABLES} == written
    (tmp_path / "out").mkdir()
    begin(tracked, args)
    assert {name: os.environ[name] for name in VARIABLES} == written
    assert json.loads(RunDirectory(tmp_path / "out").trackers_file.read_text()) == {
        "wandb": written["WANDB_RUN_ID"]
    }


def test_metrics_that_were_cut_off_are_read_up_to_there(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(file) == [{"step": 1, "loss": 2.0}]
