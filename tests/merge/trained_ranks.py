"""What one rank does in `test_trained`: it trains, has Trainer save, and gathers what was trained.

`accelerate launch` starts it with a folder of models, the output folder, and cases: `MODEL:full` or
`MODEL:lora`. Each leaves `OUT/CASE/checkpoint-2` and `OUT/CASE/expected.pt`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from peft import LoraConfig

from sailplan.model.load import load_model
from sailplan.model.processor import load_processor
from sailplan.run.config import Run
from sailplan.train.errors import leave
from tests.support.batches import image_batch, text_batch, trainer, training_arguments

ADAPTERS = {
    "plain": LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]),
    "rich": LoraConfig(
        r=3,
        lora_alpha=9,
        use_rslora=True,
        target_modules=["q_proj", "k_proj"],
        modules_to_save=["lm_head"],
    ),
}


def train(folder: Path, out: Path, method: str, bf16: bool) -> None:
    """Trains two steps and saves; gathers from DeepSpeed what the weights are at that step."""
    settings = {"bf16": bf16, "save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    args = training_arguments(out, **settings)  # Alive while the model loads, for ZeRO-3.
    run = Run(explicit={"model_name_or_path": str(folder)})
    model, processor = load_model(run), load_processor(run)
    # Half a sequence at least is trained in each batch; all ranks see the same.
    make = image_batch if "vl" in folder.name else text_batch
    placeholder = {"placeholder": "<|vision_start|><|image_pad|><|vision_end|>"}
    batches = [
        make(processor, seed=seed, **(placeholder if make is image_batch else {}))
        for seed in range(8)
    ]
    adapter = ADAPTERS.get(method)
    training = trainer(model, processor, batches, out, peft_config=adapter, **settings)
    training.train()
    whole: dict[str, torch.Tensor] = {}
    for name, parameter in training.model.named_parameters():
        if parameter.requires_grad:
            whole[name] = safe_get_full_fp32_param(parameter)
        else:
            partitioned = hasattr(parameter, "ds_id")
            with deepspeed.zero.GatheredParameters([parameter], enabled=partitioned):
                whole[name] = parameter.detach().clone()
    if args.process_index == 0:
        torch.save(whole, out / "expected.pt")


def main() -> None:
    models, out = map(Path, sys.argv[1:3])
    for case in sys.argv[3:]:
        name, method, precision = case.split(":")
        train(models / name, out / case.replace(":", "-"), method, precision == "bf16")
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
    leave()
