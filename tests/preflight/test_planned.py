"""The plan before a launch: what it settles, what it stops, and where the launcher's rules stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sailplan.errors import HardwareError, ModelError, RunFileError
from sailplan.hardware.detect import Detected, Gpu, Machine
from sailplan.launcher.command import command
from sailplan.preflight.planned import plan_ahead, refuse_what_does_not_fit
from sailplan.run.config import Run
from tests.launcher.support import machine
from tests.plan.made import planner
from tests.support.rows import chat_rows

AUTO = ("--per_device_train_batch_size", "auto", "--global_batch_size", "16")


@pytest.fixture(autouse=True)
def plan_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAILPLAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Callable[..., Run]:
    path = tmp_path / "run.yaml"
    data = chat_rows(tmp_path / "data", 40, images=False)
    path.write_text(f"model_name_or_path: {tiny_model('llama')}\ndataset_name: {data}\n")
    return lambda *flags: Run.from_file(path, ["--output_dir", str(tmp_path / "out"), *flags])


def unlisted() -> Machine:
    """A machine with cards that the catalogue does not know."""
    card = Gpu(name="NVIDIA Prototype", memory_bytes=24 * 2**30)
    return replace(machine(), gpus=Detected(value=(card,), reason="listed by the driver"))


def test_open_run_is_settled_for_the_gpus_of_the_machine(run: Callable[..., Run]) -> None:
    wanted = run(*AUTO, "--method", "auto", "--launch.gpu", "H100")
    ahead = plan_ahead(wanted, machine(gpus=2))
    assert ahead.plan
    chosen = ahead.plan.chosen
    assert (ahead.plan.card.gpu, chosen.ranks, ahead.plan.data.rows) == ("L4", 2, 40)
    assert ahead.run.get("per_device_train_batch_size") == chosen.micro_batch
    assert ahead.run.launch.strategy == chosen.strategy
    assert ahead.run.get("gradient_checkpointing") == chosen.checkpointing
    assert ahead.run.get("method") == "full"
    launch = command(ahead.run, machine(gpus=2), port=1, environment={})
    assert f"gradient_accumulation_steps: {chosen.accumulation}\n" in "".join(launch.files.values())
    assert ahead.notes[0].startswith(f"plan: {chosen.words}; ")
    # what is written as run.yaml can be planned again for other GPUs
    assert ahead.kept.get("per_device_train_batch_size") == "auto"
    assert ahead.kept.get("use_peft") is False


def test_written_values_stay(run: Callable[..., Run]) -> None:
    flags = ("--launch.strategy", "zero2", "--per_device_train_batch_size", "2")
    ahead = plan_ahead(run(*flags, "--gradient_checkpointing", "true"), machine(gpus=2))
    assert ahead.plan
    assert (ahead.run.launch.strategy, ahead.run.get("per_device_train_batch_size")) == ("zero2", 2)
    assert ahead.run.get("gradient_checkpointing") is True


def test_model_that_cannot_be_planned_is_left_to_the_ranks(run: Callable[..., Run]) -> None:
    wanted = run("--model_name_or_path", "owner/unknown")
    ahead = plan_ahead(wanted, machine(gpus=2))
    assert (ahead.run, ahead.plan) == (wanted, None)
    assert ahead.notes[0].startswith("no plan: owner/unknown is not in the hub's cache")
    with pytest.raises(ModelError, match="is not in the hub's cache"):
        plan_ahead(run("--model_name_or_path", "owner/unknown", *AUTO), machine(gpus=2))


def test_card_that_nobody_lists_leaves_the_launchers_rules(run: Callable[..., Run]) -> None:
    ahead = plan_ahead(run(), unlisted())
    assert ahead.plan is None
    assert "not in the catalogue" in ahead.notes[0]


@pytest.mark.parametrize(
    ("processes", "batch", "micro"), [(1, 16, 8), (2, 16, 8), (2, 6, 3), (1, 7, 7), (1, 11, 1)]
)
def test_without_gpu_the_largest_micro_batch_that_divides_is_taken(
    run: Callable[..., Run], processes: int, batch: int, micro: int
) -> None:
    flags = ("--per_device_train_batch_size", "auto", "--global_batch_size", str(batch))
    ahead = plan_ahead(run(*flags, "--launch.processes", str(processes)), machine())
    assert ahead.run.get("per_device_train_batch_size") == micro
    assert (ahead.plan, ahead.kept.get("per_device_train_batch_size")) == (None, "auto")


def test_without_gpu_the_method_is_full(run: Callable[..., Run]) -> None:
    ahead = plan_ahead(run("--method", "auto"), machine())
    assert ahead.run.get("method") == "full"
    assert ahead.notes == ("method full: there is no GPU whose memory would decide",)


def test_without_gpu_a_global_batch_that_does_not_divide_is_refused(
    run: Callable[..., Run],
) -> None:
    flags = ("--per_device_train_batch_size", "auto", "--global_batch_size", "15")
    with pytest.raises(RunFileError, match="15 does not divide over 2 ranks"):
        plan_ahead(run(*flags, "--launch.processes", "2"), machine())


def test_what_does_not_fit_by_more_than_the_plan_may_err_is_refused(tmp_path: Path) -> None:
    plan = planner(tmp_path, billions=30, gpus=2, strategy="zero2").plan()
    with pytest.raises(HardwareError, match=r"needs about .* per H100-80GB .*what would fit: "):
        refuse_what_does_not_fit(plan)
