"""What comes after a launch without memory: it needs less, and has the same global batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sailplan.launcher.planned import asked_strategy, with_plan
from sailplan.plan.choice.candidates import Candidate
from sailplan.plan.record import Plan
from sailplan.run.config import Run
from sailplan.run.identity import changes
from sailplan.supervise.next_plan import Failed, Next, next_plan, opened, with_settings
from tests.plan.made import planner

CPU = Failed(
    place="training",
    strategy="ddp",
    processes=2,
    on_gpu=False,
    of_host=True,
    may_change_strategy=True,
)
GPU = replace(CPU, strategy="zero3", processes=8, on_gpu=True, of_host=False)


def run_of(folder: Path, *flags: str) -> Run:
    path = folder / "run.yaml"
    path.write_text("model_name_or_path: a/b\ndataset_name: c/d\ndtype: bfloat16\n")
    return Run.from_file(path, flags)


def rungs(run: Run, failed: Failed) -> list[Next]:
    """Every plan that follows, each after the one before has failed too."""
    found: list[Next] = []
    while (following := next_plan(run, None, failed)) is not None:
        found.append(following)
        run = with_settings(run, following.settings)
        failed = replace(
            failed, strategy=following.settings.get("launch.strategy", failed.strategy)
        )
    return found


def global_batch(run: Run, processes: int) -> int:
    run = run.for_world_size(processes)
    product = run.get("per_device_train_batch_size") * run.get("gradient_accumulation_steps")
    return int(product) * processes


def test_ladder_of_8_bit_weights_ends_before_zero3(tmp_path: Path) -> None:
    run = run_of(tmp_path, "--use_peft", "--load_in_8bit", "--gradient_checkpointing", "true")
    run = with_settings(run, {"per_device_train_batch_size": 1})
    assert [one.words for one in rungs(run, CPU)] == ["strategy zero2 instead of ddp"]


def test_ladder_halves_the_micro_batch_then_checkpoints_then_shards(tmp_path: Path) -> None:
    run = run_of(
        tmp_path, "--per_device_train_batch_size", "4", "--gradient_checkpointing", "false"
    )
    assert [one.words for one in rungs(run, CPU)] == [
        "micro batch 2 × 2 instead of 4 × 1",
        "micro batch 1 × 4 instead of 2 × 2",
        "gradient checkpointing",
        "strategy zero2 instead of ddp",
        "strategy zero3 instead of zero2",
    ]


@pytest.mark.parametrize(
    "flags",
    [
        ("--per_device_train_batch_size", "6", "--gradient_accumulation_steps", "5"),
        ("--per_device_train_batch_size", "7"),
        ("--per_device_train_batch_size", "6", "--global_batch_size", "60"),
        (),
    ],
)
def test_ladder_keeps_the_global_batch_and_the_run(tmp_path: Path, flags: tuple[str, ...]) -> None:
    run = run_of(tmp_path, *flags)
    wanted = global_batch(run, 2)
    for following in rungs(run, CPU):
        changed = with_settings(run, following.settings)
        run = changed
        assert global_batch(changed, 2) == wanted
        assert not list(changes(run_of(tmp_path, *flags), changed))
    assert run.get("per_device_train_batch_size") == 1


def test_strategy_stays_where_a_checkpoint_is_there(tmp_path: Path) -> None:
    run = run_of(tmp_path, "--per_device_train_batch_size", "1")
    assert next_plan(run, None, replace(CPU, may_change_strategy=False)) is None
    assert next_plan(run_of(tmp_path), None, replace(CPU, may_change_strategy=False))


@pytest.mark.parametrize(
    ("failed", "flags", "settings"),
    [
        # Before there is a batch, only another division of the weights helps.
        ({"place": "loading"}, (), {"launch.strategy": "zero2"}),
        ({"place": "loading", "strategy": "zero3"}, (), None),
        ({"place": "evaluating"}, (), {"per_device_eval_batch_size": 4}),
        (
            {"place": "evaluating"},
            ("--per_device_eval_batch_size", "1"),
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        ),
        ({"place": "saving", "strategy": "zero3"}, (), {"save_sharded": True}),
        ({"place": "saving", "strategy": "zero3"}, ("--save_sharded", "true"), None),
        ({"place": "saving", "strategy": "zero3"}, ("--use_peft", "true"), None),
        ({"place": "saving", "strategy": "zero2"}, (), None),
        # What GPUs are given to do decides little of the machine's memory.
        ({"on_gpu": True}, (), None),
    ],
)
def test_cure_is_for_where_memory_ran_out(
    tmp_path: Path,
    failed: dict[str, Any],
    flags: tuple[str, ...],
    settings: dict[str, Any] | None,
) -> None:
    following = next_plan(run_of(tmp_path, *flags), None, replace(CPU, **failed))
    assert (following and following.settings) == settings


def planned(folder: Path, *flags: str, failed: Failed = GPU) -> tuple[Run, Plan]:
    """A run as its plan settles it, and the plan with all open that may be changed."""
    made = planner(folder, "--global_batch_size", "64", *flags)
    run = with_plan(made.run, made.plan())
    open_run = opened(run, failed)
    return run, replace(made, run=open_run, strategy=asked_strategy(open_run)[0]).plan()


def candidate(plan: Plan, run: Run) -> Candidate:
    return next(
        one
        for one in plan.candidates
        if one.strategy == run.launch.strategy
        and one.micro_batch == run.get("per_device_train_batch_size")
        and one.checkpointing == run.get("gradient_checkpointing")
    )


AUTO = ("--per_device_train_batch_size", "auto")


def test_next_of_the_planner_is_the_fastest_that_needs_clearly_less(tmp_path: Path) -> None:
    run, plan = planned(tmp_path, *AUTO)
    was = candidate(plan, run)
    following = next_plan(run, plan, replace(GPU, strategy=was.strategy))
    assert following is not None
    after = candidate(plan, with_settings(run, following.settings))
    assert after.needed_bytes <= 0.88 * was.needed_bytes
    less = [one for one in plan.candidates if one.needed_bytes <= 0.88 * was.needed_bytes]
    fits = [one for one in less if one.fits and not one.tight]
    assert after.time.step_s <= 1.03 * min(one.time.step_s for one in fits)
    assert global_batch(with_settings(run, following.settings), 8) == 64


def test_planner_changes_what_the_run_file_fixed(tmp_path: Path) -> None:
    run, plan = planned(tmp_path, "--per_device_train_batch_size", "8")
    following = next_plan(run, plan, replace(GPU, strategy=run.launch.strategy))
    assert following is not None
    changed = with_settings(run, following.settings)
    assert changed != run
    assert global_batch(changed, 8) == 64


def test_measured_memory_above_the_plan_asks_for_less_still(tmp_path: Path) -> None:
    run, plan = planned(tmp_path, *AUTO)
    failed = replace(GPU, strategy=run.launch.strategy)
    found = [next_plan(run, plan, replace(failed, memory_ratio=ratio)) for ratio in (1.0, 2.0)]
    needs = [candidate(plan, with_settings(run, one.settings)).needed_bytes for one in found if one]
    assert len(needs) == 2
    assert needs[1] < needs[0]


def test_planner_keeps_the_strategy_where_a_checkpoint_is_there(tmp_path: Path) -> None:
    first = replace(GPU, may_change_strategy=False)
    made = planner(tmp_path, "--global_batch_size", "64", *AUTO)
    run = with_plan(made.run, made.plan())
    failed = replace(first, strategy=run.launch.strategy)
    open_run = opened(run, failed)
    plan = replace(made, run=open_run, strategy=asked_strategy(open_run)[0]).plan()
    while (following := next_plan(run, plan, failed)) is not None:
        run = with_settings(run, following.settings)
        assert run.launch.strategy == failed.strategy
    assert run.get("per_device_train_batch_size") == 1
    assert run.get("gradient_checkpointing") is True
