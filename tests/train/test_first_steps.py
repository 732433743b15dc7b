"""The first steps of a run beside its plan: logged as a pair, and kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sailplan.plan.record import Plan
from sailplan.run.directory import RunDirectory
from sailplan.train.first_steps import MEASURED_STEPS, FirstSteps
from tests.plan.made import planner
from tests.support.rows import chat_rows


def train(folder: Path, *, steps: int, plan: Plan | None) -> RunDirectory:
    """Trains a line for some steps in a run directory that holds a plan, or none."""
    import torch
    from transformers import Trainer, TrainingArguments

    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.weight * x).square().mean()}

    directory = RunDirectory(folder)
    folder.mkdir(exist_ok=True)
    if plan is not None:
        directory.plan_file.write_text(plan.text())
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    rows = [{"x": torch.tensor([float(number)])} for number in range(16)]
    Trainer(model=Line(), args=args, train_dataset=rows, callbacks=[FirstSteps(directory)]).train()
    return directory


@pytest.mark.parametrize(("steps", "measured"), [(3, 2), (MEASURED_STEPS + 5, MEASURED_STEPS)])
def test_pair_is_logged_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int, measured: int
) -> None:
    plan = planner(tmp_path).plan()
    directory = train(tmp_path / "out", steps=steps, plan=plan)
    record = json.loads(directory.measured_file.read_text())
    assert (record["device"], record["steps"], record["comparable"]) == ("cpu", measured, False)
    assert record["planned_step_s"] == plan.chosen.time.step_s
    assert record["step_s"] > 0
    assert (record["active_bytes"], record["reserved_bytes"]) == (None, None)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("measured")]
    assert len(lines) == 1
    assert lines[0].endswith("; memory is not compared on cpu")


@pytest.mark.parametrize("steps", [1, 3])
def test_nothing_is_written_without_a_plan_or_without_two_steps(tmp_path: Path, steps: int) -> None:
    plan = planner(tmp_path).plan() if steps == 1 else None
    assert not train(tmp_path / "out", steps=steps, plan=plan).measured_file.exists()


def test_plan_of_another_version_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/plan.json").write_text('{"model": "a/b"}')
    assert not train(tmp_path / "out", steps=3, plan=None).measured_file.exists()


def test_train_writes_plan_and_measurement(
    tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAILPLAN_CACHE", str(tmp_path / "plans"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    data = chat_rows(tmp_path / "data", 16, images=False)
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model_name_or_path: {tiny_model('llama')}\ndataset_name: {data}\nmax_steps: 3\n"
        f"output_dir: {tmp_path}/out\nreport_to: none\nsave_strategy: 'no'\n"
        "per_device_train_batch_size: auto\nglobal_batch_size: 4\nlaunch: {gpu: L4}\n"
    )
    verbs = (["plan", str(path)], ["train", str(path), "--launch.cpu", "true"])
    for verb in verbs:
        done = subprocess.run(
            [sys.executable, "-m", "sailplan", *verb],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "per_device_train_batch_size 4: the largest up to 8 that divides" in done.stdout
    plan = json.loads((tmp_path / "out/plan.json").read_text())
    assert plan["card"]["gpu"] == "L4"
    assert "\nper_device_train_batch_size: auto\n" in (tmp_path / "out/run.yaml").read_text()
    assert "\nper_device_train_batch_size: 4\n" in (tmp_path / "out/train.yaml").read_text()
    assert json.loads((tmp_path / "out/measured.json").read_text())["steps"] == 2
    assert "measured: " in done.stdout
