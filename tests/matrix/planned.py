"""What plans say of public models: memory on usual GPUs, and the tokens of pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sailplan.errors import RunFileError
from sailplan.hardware.catalogue import find
from sailplan.model.families import Family, family_of
from sailplan.model.lineup import LINEUP
from sailplan.model.parts import base_model
from sailplan.model.pixels import set_pixel_budget
from sailplan.model.published import Published, published
from sailplan.plan.choice.explain import gib
from sailplan.plan.of_run import plan_of
from sailplan.plan.record import Card
from sailplan.plan.simulation import batch
from sailplan.plan.simulation.build import build, fake_copy
from sailplan.plan.simulation.depth import config_of, shallow
from sailplan.plan.simulation.fake import Tracker, fake_mode
from sailplan.plan.workload import Images, Workload
from sailplan.run.blocks import Strategy
from sailplan.run.config import Run

PICTURES = ((224, 224), (448, 448), (640, 480), (1024, 1024), (1920, 1080))
"""Width and height in pixels."""
MACHINES: tuple[tuple[str, str, int, Strategy], ...] = (
    ("qlora", "L4", 1, "single"),
    ("lora", "H100-80GB", 1, "single"),
    ("full", "H100-80GB", 8, "zero3"),
)
"""Method, GPU, how many of them, and strategy."""
LEAST_BYTES = {"qlora": 0.5, "lora": 2, "full": 16}
"""Of each weight, whatever else is needed: where that alone is too much, nothing is planned."""
UNFIT = "does not fit"


def known(name: str) -> Published:
    """Returns a model of the table, which has to be there."""
    found = published(name)
    assert found is not None, f"{name} is not in the table"
    return found


def card(gpu: str, gpus: int) -> Card:
    """Returns a machine of so many GPUs of the catalogue."""
    model = find(gpu)
    return Card(
        gpu=model.name,
        card_bytes=model.memory_bytes,
        gpus_per_node=gpus,
        nodes=1,
        reason="launch.gpu",
    )


def memory(name: str) -> list[str]:
    """Returns what a model needs of a GPU of each of `MACHINES`, or that it does not fit."""
    return [_memory(name, *machine) for machine in MACHINES]


def _memory(name: str, method: str, gpu: str, gpus: int, strategy: Strategy) -> str:
    if known(name).parameters * LEAST_BYTES[method] > gpus * find(gpu).memory_bytes:
        return UNFIT
    fields = {
        "model_name_or_path": name,
        "method": method,
        "dtype": "bfloat16",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": "true",
    }
    run = Run.read_flags(
        [word for key, value in fields.items() for word in (f"--{key}", str(value))]
    )
    chosen = plan_of(run, card(gpu, gpus), strategy=strategy).chosen
    if not chosen.fits:
        return UNFIT
    return gib(chosen.needed_bytes) + (", tight" if chosen.tight else "")


def family(name: str) -> Family:
    """Returns what a model's config says of its family."""
    return family_of(config_of(known(name).config))


def member_of(name: str) -> str:
    """Returns the family of the lineup that a model belongs to; one of experts may stand alone."""
    found = family(name).name
    return found if found in LINEUP else found.removesuffix("_moe")


def by_processor(names: Sequence[str]) -> list[list[str]]:
    """Groups models whose pictures are made in the same way and so have the same tokens."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(json.dumps(known(name).processor, sort_keys=True), []).append(name)
    return list(found.values())


def image_tokens(name: str) -> list[int]:
    """Returns how many tokens a picture of each of `PICTURES` has, as plans count them."""
    model = known(name)
    config = config_of(model.config)
    small, fake = shallow(config), fake_mode()
    workload = Workload(config=model.config, micro_batch=1, length_tokens=1)
    whole = fake_copy(build(workload, small), fake)
    processor = batch.image_processor(config, model.processor)
    found = []
    for width, height in PICTURES:
        images = Images(per_row=1, height=height, width=width)
        made = batch.pixels(images, 1, config, processor, packed=True)
        vision = {
            key: value if family_of(config).pixels_by_row else _faked(fake, value)
            for key, value in made.items()
        }
        with Tracker(fake, [*whole.parameters(), *whole.buffers()], lambda _: None):
            found.append(batch.image_tokens(small, base_model(whole), vision))
    return found


def _faked(fake: Any, value: Any) -> Any:
    return fake.from_tensor(value) if getattr(value, "is_floating_point", bool)() else value


def takes_max_pixels(name: str) -> bool:
    """Says whether `max_pixels` bounds the tokens of a model's pictures."""
    model = known(name)
    images = batch.image_processor(config_of(model.config), model.processor)

    class Whole:
        image_processor = images
        spatial_merge_size = model.config.get("spatial_merge_size")

    try:
        set_pixel_budget(Whole, min_pixels=None, max_pixels=2**22)
    except RunFileError:
        return False
    return True
