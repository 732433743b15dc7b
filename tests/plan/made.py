"""Profiles made by hand, of a decoder as formulas have it: what the chooser is tested with."""

from __future__ import annotations

from pathlib import Path

from sailplan.hardware.catalogue import find
from sailplan.plan.facts.data import DataFacts
from sailplan.plan.facts.model import ModelFacts
from sailplan.plan.make import Planner
from sailplan.plan.profile import Moment, Profile, Tensors
from sailplan.plan.record import Card
from sailplan.plan.workload import Workload
from sailplan.run.blocks import Strategy
from sailplan.run.config import Run

LAYERS = 32
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "nf4": 0.52, "int8": 1}


def profile_of(workload: Workload) -> Profile:
    """A decoder of `config["billions"]` of weights, each layer alike."""
    weights = int(workload.config["billions"] * 1e9)
    return made(workload, weights)


def made(workload: Workload, weights: int) -> Profile:
    """A decoder of so many weights."""
    full = workload.adapter is None
    size = _BYTES[workload.quantization or workload.weights]
    layer = weights // LAYERS
    trained = layer if full else 200_000 * (workload.adapter.rank if workload.adapter else 0)
    trained_size = _BYTES[workload.adapter.dtype] if workload.adapter else size
    groups = tuple(
        Tensors(
            name=f"model.layers.{index}",
            part="language_model",
            frozen_elements=0 if full else layer,
            frozen_bytes=0 if full else int(layer * size),
            trained_elements=trained,
            trained_bytes=int(trained * trained_size),
            largest_elements=layer // 4,
            trained_tensors=(trained // 4,) * 4,
        )
        for index in range(LAYERS)
    )
    hidden = int((weights / LAYERS / 12) ** 0.5)
    tokens = workload.tokens
    kept = 1 if workload.checkpointing != "none" else 17
    saved = 2 * hidden * tokens * LAYERS * kept
    working = 40 * hidden * tokens
    moments = tuple(
        Moment(
            name=f"{phase} model.layers.{index}",
            phase=phase,
            group=index,
            activation_bytes=saved + working,
            with_own_gradients_bytes=saved + working + int(trained * trained_size),
            left_bytes=saved,
            began_bytes=saved,
        )
        for phase in ("forward", "backward")
        for index in range(LAYERS)
    )
    forward = 2.0 * weights * tokens
    again = forward if workload.checkpointing != "none" else 0.0
    return Profile(
        groups=groups,
        moments=moments,
        saved_bytes=saved,
        forward_flops=forward,
        backward_flops=again + (2 if full else 1) * forward,
        vision_flops=0.0,
        image_tokens=0,
        buffer_bytes=0,
    )


def rows(count: int | None = 4096, *lengths: int) -> DataFacts:
    """Facts of text rows."""
    return DataFacts(
        rows=count,
        lengths=lengths or (2048,),
        trained_share=0.5,
        images_per_row=0,
        image_height=0,
        image_width=0,
        sampled=len(lengths) or 1,
    )


def planner(
    folder: Path,
    *flags: str,
    billions: float = 8.0,
    gpu: str = "H100-80GB",
    gpus: int = 8,
    nodes: int = 1,
    data: DataFacts | None = None,
    strategy: Strategy | None = None,
) -> Planner:
    """Plans a run with these flags, of a made-up model."""
    path = folder / "run.yaml"
    path.write_text("model_name_or_path: a/b\ndataset_name: c/d\ndtype: bfloat16\n")
    card = Card(
        gpu=gpu,
        card_bytes=find(gpu).memory_bytes,
        gpus_per_node=gpus,
        nodes=nodes,
        reason="launch.gpu",
    )
    model = ModelFacts(
        name="a/b",
        config={"model_type": "made", "billions": billions},
        image_processor=None,
        folder=None,
        source="the test",
    )
    return Planner(
        run=Run.from_file(path, flags),
        model=model,
        data=data or rows(),
        card=card,
        strategy=strategy,
        simulate=profile_of,
    )
