"""QLoRA and 8-bit LoRA for real on CPU: the loss falls, and the adapter file is whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sailplan.model.load import load_model
from sailplan.model.processor import load_processor
from sailplan.model.trainable import lora_config
from sailplan.run.config import Run
from sailplan.train.guards.gradients import GradientGuard
from tests.support.batches import image_batch, trainer

PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "bits", [{"load_in_4bit": True, "use_bnb_nested_quant": True}, {"load_in_8bit": True}]
)
def test_quantised_lora_trains_and_saves_a_whole_adapter(
    tiny_model: Callable[[str], Path], tmp_path: Path, bits: dict[str, bool], dtype: str
) -> None:
    run = Run(
        explicit={
            "model_name_or_path": str(tiny_model("qwen2_vl")),
            "use_peft": True,
            "lora_r": 8,
            "lora_target_modules": ["q_proj", "v_proj"],
            "dtype": dtype,
            **bits,
        }
    )
    model, processor = load_model(run), load_processor(run)
    batches = [image_batch(processor, placeholder=PLACEHOLDER)] * 8
    training = trainer(
        model,
        processor,
        batches,
        tmp_path,
        max_steps=8,
        callbacks=[GradientGuard(2)],
        peft_config=lora_config(run, model),
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )

    training.train()
    training.save_model()

    losses = [entry["loss"] for entry in training.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    layers = "base_model.model.model.language_model.layers"
    assert set(adapter) == {
        f"{layers}.{layer}.self_attn.{name}_proj.lora_{side}.weight"
        for layer in range(2)
        for name in "qv"
        for side in "AB"
    }
    for name, tensor in adapter.items():
        assert torch.isfinite(tensor).all(), name
        assert tensor.count_nonzero() > 0, name
