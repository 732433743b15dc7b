"""A run goes on with more or fewer ranks, and its curve is that of the ranks that began it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sailplan.run.config import Run
from tests.support import patience
from tests.support.launch import accelerate_launch, flags
from tests.support.rows import chat_rows

STEPS, SAVED, GLOBAL_BATCH = 8, 4, 4
METHODS: dict[str, dict[str, Any]] = {
    # Weight decay makes two groups of parameters with settings of their own.
    "full": {"learning_rate": 1e-3, "weight_decay": 0.1},
    "lora": {
        "learning_rate": 1e-2,
        "use_peft": "true",
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0,
    },
}
Undisturbed = Callable[[str, str, int], Path]


@pytest.fixture(scope="module")
def values(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]
) -> dict[str, Any]:
    return {
        "model_name_or_path": tiny_model("qwen2_vl"),
        "dataset_name": chat_rows(tmp_path_factory.mktemp("rows"), 48),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "bf16": "false",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": SAVED,
        "save_first_step": "false",
        "report_to": "none",
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> Undisturbed:
    """Trains a method under a preset on so many ranks to the end, once."""

    @cache
    def train(method: str, preset: str, ranks: int) -> Path:
        output = tmp_path_factory.mktemp("undisturbed") / "run"
        settings = {
            **values,
            **METHODS[method],
            "per_device_train_batch_size": GLOBAL_BATCH // ranks,
            "output_dir": output,
        }
        launch(settings, preset, ranks)
        return output

    return train


def launch(settings: dict[str, Any], preset: str, ranks: int) -> str:
    """Trains, and returns what was told."""
    done = accelerate_launch(flags(settings), preset=preset, processes=ranks)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def curve(output: Path) -> dict[int, float]:
    """The loss of each step."""
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def check_goes_on(
    run: Path, values: dict[str, Any], output: Path, method: str, preset: str, ranks: int
) -> str:
    """Goes on from the middle of a run, and compares the curves; returns what was told."""
    begun = {"resume_from_checkpoint": run / f"checkpoint-{SAVED}", "output_dir": output}
    told = launch({**values, **METHODS[method], **begun}, preset, ranks)
    expected = curve(run)
    found = curve(output)
    assert list(found) == list(range(SAVED + 1, STEPS + 1))
    for step, loss in found.items():
        assert loss == pytest.approx(expected[step], abs=1e-4)
    assert not list(output.glob("divided*"))
    return told


def slow(*case: object) -> Any:
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("method", "preset", "before", "after"),
    [
        ("full", "deepspeed_zero3", 2, 1),
        slow("full", "deepspeed_zero3", 2, 4),
        slow("full", "deepspeed_zero3", 4, 2),
        slow("lora", "deepspeed_zero3", 2, 1),
        slow("lora", "deepspeed_zero3", 2, 4),
        slow("lora", "deepspeed_zero3", 4, 2),
        slow("full", "deepspeed_zero2", 2, 1),
        slow("full", "deepspeed_zero2", 2, 4),
        slow("full", "deepspeed_zero2", 4, 2),
        slow("lora", "deepspeed_zero2", 2, 1),
        ("lora", "deepspeed_zero2", 2, 4),
        slow("lora", "deepspeed_zero2", 4, 2),
        slow("full", "deepspeed_zero1", 2, 4),
        slow("full", "deepspeed_zero3_offload", 2, 1),
        slow("full", "ddp", 2, 4),
        slow("full", "ddp", 4, 2),
        slow("lora", "ddp", 2, 4),
        slow("lora", "ddp", 4, 2),
    ],
)
def test_run_on_other_ranks_has_the_curve_of_those_that_began_it(
    undisturbed: Undisturbed,
    values: dict[str, Any],
    tmp_path: Path,
    method: str,
    preset: str,
    before: int,
    after: int,
) -> None:
    run = undisturbed(method, preset, before)
    told = check_goes_on(run, values, tmp_path / "run", method, preset, after)
    saved = f"checkpoint-{SAVED} was saved by {before} ranks and goes on with {after}"
    assert f"{saved}: the curve stays the same, to rounding" in told
    micro = min(2, GLOBAL_BATCH // after)
    ranks = "1 rank" if after == 1 else f"{after} ranks"
    kept = f"global batch 4 kept: micro batch {micro} × {ranks} × accumulation"
    assert (kept in told) == (2 * after != GLOBAL_BATCH)


@pytest.mark.slow
def test_run_of_zero_is_launched_on_one_process_under_zero(
    undisturbed: Undisturbed, values: dict[str, Any], tmp_path: Path
) -> None:
    """Where the run file leaves the strategy open, one process would take `single`."""
    run = undisturbed("full", "deepspeed_zero3", 2)
    settings = {
        **values,
        **METHODS["full"],
        "output_dir": str(tmp_path / "run"),
        "resume_from_checkpoint": str(run / f"checkpoint-{SAVED}"),
    }
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({name: str(value) for name, value in settings.items()}))
    command = [sys.executable, "-m", "sailplan", "train", str(file), "--launch.processes", "1"]
    done = patience.run(command, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "strategy zero3: the run goes on as it was saved\n" in done.stdout
    assert done.stdout.count("global batch 4 kept: micro batch 2") == 1
    expected = curve(run)
    for step, loss in curve(tmp_path / "run").items():
        assert loss == pytest.approx(expected[step], abs=1e-4)
    # It stays open, for whatever machine comes next.
    assert Run.from_file(tmp_path / "run" / "run.yaml").launch.strategy == "auto"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_run_under_ddp_goes_on_with_one_rank(
    undisturbed: Undisturbed, values: dict[str, Any], tmp_path: Path, method: str
) -> None:
    run = undisturbed(method, "ddp", 2)
    check_goes_on(run, values, tmp_path / "run", method, "single_gpu", 1)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("before", "after"), [("zero2", "zero3"), ("zero3", "zero2")])
def test_run_goes_on_under_another_stage_of_zero(
    undisturbed: Undisturbed,
    values: dict[str, Any],
    tmp_path: Path,
    method: str,
    before: str,
    after: str,
) -> None:
    run = undisturbed(method, f"deepspeed_{before}", 2)
    check_goes_on(run, values, tmp_path / "run", method, f"deepspeed_{after}", 2)


@pytest.mark.slow
def test_best_weights_of_other_ranks_load_at_the_end(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """The loss falls, and the greatest is taken for the best: that of the first checkpoint."""
    settings = {
        **values,
        **METHODS["full"],
        "eval_size": 4,
        "eval_strategy": "steps",
        "eval_steps": SAVED,
        "load_best_model_at_end": "true",
        "metric_for_best_model": "loss",
        "greater_is_better": "true",
        "output_dir": tmp_path / "run",
    }
    launch({**settings, "max_steps": SAVED}, "deepspeed_zero3", 2)
    launch(settings, "deepspeed_zero3", 4)
    first, last, final = (
        load_file(tmp_path / "run" / name / "model.safetensors")
        for name in (f"checkpoint-{SAVED}", f"checkpoint-{STEPS}", "")
    )
    assert all(torch.equal(final[name], tensor) for name, tensor in first.items())
    assert not all(torch.equal(last[name], tensor) for name, tensor in first.items())


@pytest.mark.slow
def test_run_with_dropout_says_that_it_differs_and_seeds_each_rank_otherwise(
    values: dict[str, Any], tmp_path: Path
) -> None:
    settings = {
        **values,
        **METHODS["lora"],
        "lora_dropout": 0.1,
        "output_dir": tmp_path / "run",
    }
    launch({**settings, "max_steps": SAVED}, "ddp", 2)
    told = launch(settings, "ddp", 4)
    assert "dropout draws other numbers from here on, so the curve differs a little" in told
    last = tmp_path / "run" / f"checkpoint-{STEPS}"
    states = [random_state(last, rank) for rank in range(4)]
    assert not torch.equal(states[2], states[3])


def random_state(checkpoint: Path, rank: int) -> torch.Tensor:
    """The state of a rank's random numbers on the CPU."""
    saved = torch.load(checkpoint / f"rng_state_{rank}.pth", weights_only=False)
    state: torch.Tensor = saved["cpu"]
    return state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("deepspeed_zero2", "ddp", "was saved under ZeRO, and its optimizer loads only there"),
        ("ddp", "deepspeed_zero2", "was not saved under DeepSpeed"),
    ],
)
def test_run_under_another_strategy_is_refused_before_its_optimizer_is_lost(
    undisturbed: Undisturbed,
    values: dict[str, Any],
    tmp_path: Path,
    before: str,
    after: str,
    message: str,
) -> None:
    run = undisturbed("lora", before, 2)
    begun = {"resume_from_checkpoint": run / f"checkpoint-{SAVED}", "output_dir": tmp_path / "run"}
    settings = {**values, **METHODS["lora"], **begun}
    done = accelerate_launch(flags(settings), preset=after, processes=2)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout


@pytest.mark.slow
def test_optimizer_whose_state_is_in_8_bits_is_not_divided(
    values: dict[str, Any], tmp_path: Path
) -> None:
    settings = {
        **values,
        **METHODS["full"],
        "optim": "adamw_8bit",
        "output_dir": tmp_path / "run",
    }
    launch({**settings, "max_steps": SAVED}, "deepspeed_zero2", 2)
    done = accelerate_launch(flags(settings), preset="deepspeed_zero2", processes=1)
    assert done.returncode != 0
    assert "cannot be divided over other ranks" in done.stderr + done.stdout
