"""Every run file of launch/ fits the hardware that its name says, by its plan."""

from __future__ import annotations

import pytest

from sailplan.files import folder
from sailplan.plan.of_run import plan_of
from sailplan.run.config import Run
from tests.matrix.planned import card

CARDS = {
    "1x24gb": ("L4", 1),
    "1xh100": ("H100", 1),
    "4gpu": ("A100", 4),
    "8xh100": ("H100", 8),
}
"""By the third word of a file's name."""
NAMES = sorted(file.stem for file in folder("launch").glob("*.yaml"))
QUICK = (
    *("gemma_3_1b-full-1x24gb", "llava_1_5_7b-qlora-1x24gb", "llama_7b-lora-4gpu"),
    *("gemma_3_1b-full-8xh100-zero2", "llama_3_1_70b-lora-8xh100-zero3"),
)
"""A file for each kind of machine and method; a plan takes seconds, and there are many."""


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_run_file_fits_the_hardware_of_its_name(name: str) -> None:
    run = Run.from_file(folder("launch") / f"{name}.yaml")

    plan = plan_of(run, card(*CARDS[name.split("-")[2]]), strategy=run.launch.strategy)

    assert plan.fits, plan.chosen.words
    assert plan.method == name.split("-")[1]
    assert plan.chosen.micro_batch == run.get("per_device_train_batch_size")
    assert plan.image_tokens or not plan.data.images_per_row
