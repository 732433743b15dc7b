"""The choice: the fastest that fits at the user's global batch; why, and what else would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sailplan.errors import HardwareError, RunFileError
from sailplan.plan.choice.candidates import divisors
from sailplan.plan.choice.choose import choose
from sailplan.plan.choice.explain import change, explain, fewer
from sailplan.plan.record import Plan, read_plan
from tests.plan.made import planner, rows

AUTO = ("--per_device_train_batch_size", "auto", "--global_batch_size", "64")


def test_plan_of_full_training_keeps_the_global_batch_and_says_why(tmp_path: Path) -> None:
    plan = planner(tmp_path, *AUTO, "--dtype", "float32").plan()
    chosen = plan.chosen
    assert chosen.fits
    assert not chosen.tight
    assert chosen.micro_batch * chosen.accumulation * chosen.ranks == 64
    for one in plan.candidates:
        assert one.micro_batch * one.accumulation * one.ranks == 64
    better = [one for one in plan.candidates if one.fits and not one.tight]
    assert chosen.time.step_s <= 1.03 * min(one.time.step_s for one in better)
    reasons = explain(plan)
    assert any("optimizer" in reason and "per GPU" in reason for reason in reasons), reasons
    assert any(reason.endswith("under ddp") for reason in reasons), reasons


def test_plan_weighs_every_strategy_micro_batch_and_checkpointing(tmp_path: Path) -> None:
    plan = planner(tmp_path, *AUTO, "--use_peft").plan()
    seen = {(one.strategy, one.micro_batch, one.checkpointing) for one in plan.candidates}
    assert seen == {
        (strategy, micro, checkpointing)
        for strategy in ("ddp", "zero1", "zero2", "zero3", "zero3_offload")
        for micro in (1, 2, 4, 8)
        for checkpointing in (True, False)
    }
    assert len({one.strategy for one in plan.runners_up}) > 1


def test_plan_of_8_bit_weights_never_takes_what_cannot_shard_them(tmp_path: Path) -> None:
    plan = planner(tmp_path, *AUTO, "--use_peft", "--load_in_8bit", billions=400).plan()
    assert {one.strategy for one in plan.candidates} == {"ddp", "zero1", "zero2"}
    assert not plan.fits
    named = [change.candidate.strategy for change in plan.changes if change.candidate]
    assert not {"zero3", "zero3_offload"}.intersection(named)
    with pytest.raises(RunFileError, match="load_in_8bit with strategy zero3"):
        planner(tmp_path, *AUTO, "--use_peft", "--load_in_8bit", strategy="zero3").plan()


@pytest.mark.parametrize(
    ("flags", "field", "values"),
    [
        (("--gradient_checkpointing", "true"), "checkpointing", {True}),
        (("--per_device_train_batch_size", "2"), "micro_batch", {2}),
        (("--gradient_accumulation_steps", "4"), "micro_batch", {2}),
    ],
)
def test_plan_takes_what_is_written(
    tmp_path: Path, flags: tuple[str, ...], field: str, values: set[object]
) -> None:
    plan = planner(tmp_path, *AUTO, *flags).plan()
    assert {getattr(one, field) for one in plan.candidates} == values


def test_plan_takes_the_strategy_that_is_written(tmp_path: Path) -> None:
    plan = planner(tmp_path, *AUTO, strategy="fsdp2").plan()
    assert {one.strategy for one in plan.candidates} == {"fsdp2"}


def test_plan_without_float32_copies_does_not_weigh_ddp(tmp_path: Path) -> None:
    plan = planner(tmp_path, *AUTO, billions=0.5).plan()
    assert "ddp" not in {one.strategy for one in plan.candidates}
    assert any(note.startswith("ddp is not weighed") for note in plan.notes)


def test_tight_candidate_is_chosen_only_where_nothing_else_fits(tmp_path: Path) -> None:
    plan = planner(tmp_path, *AUTO).plan()
    slow = plan.chosen
    card = int(slow.needed_bytes / 0.95)
    tight = replace(slow, card_bytes=card, time=replace(slow.time, step_s=slow.time.step_s / 2))
    assert tight.tight
    assert choose([tight, slow]).chosen == slow
    assert choose([tight]).chosen == tight


def test_plan_says_what_fewer_gpus_would_take(tmp_path: Path) -> None:
    plan = planner(tmp_path, *AUTO, billions=20).plan()
    assert [one.ranks for one in plan.fewer_gpus] == [4, 2, 1]
    lines = fewer(plan)
    assert "times as long a step" in lines[0]
    assert lines[2].startswith("1 GPU: zero3_offload, micro batch ")


@pytest.mark.parametrize(
    ("gpu", "gpus", "billions", "method"),
    [("H200", 8, 8, "full"), ("A100-40GB", 1, 8, "lora"), ("L4", 1, 13, "qlora")],
)
def test_method_auto_is_the_most_faithful_that_fits(
    tmp_path: Path, gpu: str, gpus: int, billions: float, method: str
) -> None:
    flags, data = (*AUTO, "--method", "auto"), rows(64, 512)
    plan = planner(tmp_path, *flags, gpu=gpu, gpus=gpus, billions=billions, data=data).plan()
    assert plan.method == method
    assert [tried.method for tried in plan.tried] == ["full", "lora", "qlora"][
        : ["full", "lora", "qlora"].index(method)
    ]
    assert sum(" at the least" in reason for reason in explain(plan)) == len(plan.tried)


def test_plan_where_nothing_fits_says_by_how_much_and_what_would(tmp_path: Path) -> None:
    flags = ("--per_device_train_batch_size", "8", "--gradient_checkpointing", "false")
    plan = planner(
        tmp_path, *flags, billions=13, gpus=2, strategy="zero2", data=rows(4096, 4096)
    ).plan()
    assert not plan.fits
    assert plan.chosen.missing_bytes > 0
    assert explain(plan)[0].startswith("nothing fits: zero2, micro batch 8 × 1, no checkpointing")
    assert "GiB more than a H100-80GB has" in explain(plan)[0]
    told = [one.what for one in plan.changes]
    assert "strategy" in told
    assert "method" in told
    for one in plan.changes:
        assert one.candidate is None or one.candidate.fits
        assert change(one)


def test_change_that_is_smallest_comes_first(tmp_path: Path) -> None:
    flags = ("--per_device_train_batch_size", "8", "--gradient_checkpointing", "false")
    plan = planner(tmp_path, *flags, strategy="zero3", data=rows(4096, 8192)).plan()
    assert [one.what for one in plan.changes][:2] == ["checkpointing", "micro_batch"]
    assert change(plan.changes[0]).startswith("gradient_checkpointing: true (")


def test_plan_tells_of_a_micro_batch_that_would_be_faster(tmp_path: Path) -> None:
    flags = ("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "16")
    plan = planner(tmp_path, *flags, data=rows(4096, 128), billions=1).plan()
    assert plan.chosen.micro_batch == 1
    assert plan.faster
    assert plan.faster.micro_batch > 1


def test_global_batch_that_does_not_divide_shows_the_nearest() -> None:
    with pytest.raises(RunFileError) as caught:
        divisors(100, 8)
    assert str(caught.value) == (
        "global_batch_size 100 does not divide over 8 ranks; allowed: 96 or 104 on 8 ranks; "
        "or keep 100 on 5 ranks"
    )


def test_global_batch_that_is_not_made_of_the_micro_batch_shows_what_is(tmp_path: Path) -> None:
    flags = ("--per_device_train_batch_size", "3", "--global_batch_size", "64")
    with pytest.raises(RunFileError) as caught:
        planner(tmp_path, *flags).plan()
    assert str(caught.value) == (
        "global_batch_size 64 is no multiple of per_device_train_batch_size 3 × 8 ranks; "
        "allowed: 48 or 72, or a micro batch of 1, 2, 4, 8"
    )


def test_offloading_is_not_chosen_where_the_host_has_no_room(tmp_path: Path) -> None:
    made = planner(tmp_path, *AUTO, billions=20, gpus=1)
    assert made.plan().chosen.strategy == "zero3_offload"
    poor = replace(made, card=replace(made.card, host_bytes=64 * 2**30)).plan()
    assert poor.chosen.strategy == "single"
    assert not poor.fits


def test_more_gpus_than_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match=r"16 GPUs for 12 rows: .*1 to 12 GPUs"):
        planner(tmp_path, *AUTO, nodes=2, data=rows(12)).plan()


def test_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    plan = planner(tmp_path, *AUTO).plan()
    file = tmp_path / "plan.json"
    file.write_text(plan.text())
    assert read_plan(file) == replace(plan, candidates=())


def costs(plan: Plan) -> tuple[float | None, float | None]:
    return plan.cost, plan.total_s


def test_cost_is_of_all_gpus_for_the_whole_run(tmp_path: Path) -> None:
    cost, total = costs(planner(tmp_path, *AUTO, "--launch.price_per_hour", "2.5").plan())
    assert cost
    assert total
    assert cost == pytest.approx(total / 3600 * 8 * 2.5)
    assert costs(planner(tmp_path, *AUTO, data=rows(None)).plan()) == (None, None)
