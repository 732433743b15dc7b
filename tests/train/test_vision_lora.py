"""LoRA in the vision tower trains under both kinds of gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from sailplan.model.load import load_model
from sailplan.model.parts import PROJECTOR, VISION_TOWER, parameters_by_part
from sailplan.model.processor import load_processor
from sailplan.model.trainable import lora_config
from sailplan.run.config import Run
from sailplan.train.parts import settle_parts
from tests.support.batches import image_batch, trainer

PLACEHOLDERS = {
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "llava": "<image>",
    "pixtral": "[IMG]",
    "mllama": "<|image|>",
}


@pytest.mark.parametrize("checkpointing", ["reentrant", "non-reentrant"])
@pytest.mark.parametrize("family", PLACEHOLDERS)
def test_vision_lora_changes_every_tensor_of_tower_and_projector(
    tiny_model: Callable[[str], Path], tmp_path: Path, family: str, checkpointing: str
) -> None:
    run = Run(
        explicit={
            "model_name_or_path": str(tiny_model(family)),
            "use_peft": True,
            "lora_vision": True,
            "learning_rate": 1e-2,
        }
    )
    model, processor = load_model(run), load_processor(run)
    batches = [image_batch(processor, placeholder=PLACEHOLDERS[family], seed=s) for s in range(3)]
    training = trainer(
        model,
        processor,
        batches,
        tmp_path,
        max_steps=3,
        peft_config=lora_config(run, model),
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": checkpointing == "reentrant"},
    )
    settle_parts(run, training.args, training.model)
    before = trained(training.model)

    training.train()

    after = trained(training.model)
    assert {name.split(".lora_")[1] for name in before} == {"A.default.weight", "B.default.weight"}
    assert [name for name in before if before[name].equal(after[name])] == []


def trained(model: Any) -> dict[str, Tensor]:
    """Returns copies of what trains in the tower and the projector."""
    parts = parameters_by_part(model)
    return {
        name: parameter.detach().clone()
        for part in (VISION_TOWER, PROJECTOR)
        for name, parameter in parts[part].items()
        if parameter.requires_grad
    }
