"""Plans of public models, simulated for real."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sailplan import files
from sailplan.hardware.catalogue import find
from sailplan.plan.facts.data import DataFacts
from sailplan.plan.facts.model import model_facts
from sailplan.plan.make import Planner
from sailplan.plan.of_run import plan_of
from sailplan.plan.record import Card
from sailplan.run.config import Run


def card(gpu: str, gpus: int = 1, nodes: int = 1) -> Card:
    model = find(gpu)
    return Card(
        gpu=model.name,
        card_bytes=model.memory_bytes,
        gpus_per_node=gpus,
        nodes=nodes,
        reason="launch.gpu",
    )


def shipped(name: str, *flags: str) -> Run:
    return Run.from_file(files.folder("launch") / f"{name}.yaml", flags)


def test_articles_run_fits_a_24_gb_card_and_takes_129_steps() -> None:
    run = shipped("qwen2_vl_7b-qlora-1x24gb")
    data = DataFacts(  # 1350 rows, pictures of 500 pixels a side
        rows=1350,
        lengths=(480, 540, 600, 720),
        trained_share=0.2,
        images_per_row=1,
        image_height=500,
        image_width=500,
        sampled=4,
    )
    plan = Planner(
        run=run, model=model_facts(run), data=data, card=card("L4"), strategy="single"
    ).plan()
    assert plan.fits
    assert not plan.chosen.tight
    assert (plan.chosen.micro_batch, plan.chosen.accumulation) == (4, 8)
    assert plan.steps
    assert plan.steps.total == 129
    assert plan.parameters - plan.trained_parameters == 8_291_375_616
    assert plan.trained_parameters == 2_523_136  # as the article prints it
    assert plan.image_tokens == 18 * 18


@pytest.mark.slow
def test_plan_is_one_for_more_nodes_too() -> None:
    flags = ("--per_device_train_batch_size", "auto", "--global_batch_size", "1024")
    run = shipped("llava_1_5_7b-full-8xh100-zero3", *flags, "--gradient_accumulation_steps", "1")
    run = replace(run, explicit={k: v for k, v in run.explicit.items() if "accum" not in k})
    one, many = (plan_of(run, card("H100-80GB", 8, nodes)) for nodes in (1, 64))
    assert one.fits
    assert many.fits
    assert many.chosen.ranks == 512
    assert many.chosen.time.step_s < one.chosen.time.step_s
