"""The commands of the two articles, with tiny local models in place of the hub's."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sailplan.model.precision import find_device
from tests.support import patience
from tests.support.launch import ENTRY, ROOT, accelerate_launch, free_port, losses
from tests.support.rows import draw


def instruct_mix(folder: Path, count: int) -> Path:
    """Writes a parquet folder shaped like HuggingFaceH4/llava-instruct-mix-vsft."""
    import datasets

    rows = []
    for number in range(count):
        colour = ("red", "green", "blue")[number % 3]
        file = folder / f"{number}.png"
        draw(file, colour=colour, size=(60 + number % 40, 70))
        user = [
            {"index": None, "text": "Which colour is this?", "type": "text"},
            {"index": 0, "text": None, "type": "image"},
        ]
        answer = [{"index": None, "text": f"It is {colour}.", "type": "text"}]
        messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        rows.append({"messages": messages, "images": [{"path": None, "bytes": file.read_bytes()}]})
    part = {"index": datasets.Value("int64"), "text": datasets.Value("string")}
    part["type"] = datasets.Value("string")
    turn = {"content": datasets.List(part), "role": datasets.Value("string")}
    features = {"messages": datasets.List(turn), "images": datasets.List(datasets.Image())}
    data = folder / "data"
    data.mkdir()
    table = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    table.to_parquet(data / "train-00000-of-00001.parquet")
    return data


def test_trl_command_for_8_gpus_trains_flag_for_flag(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    images = tmp_path / "drawn"
    images.mkdir()
    output = tmp_path / "sft-llava-1.5-7b-hf"
    # https://github.com/huggingface/trl/blob/main/examples/scripts/sft_vlm.py
    command = f"""
        --dataset_name {instruct_mix(images, 128)}
        --model_name_or_path {tiny_model("llava")}
        --per_device_train_batch_size 8
        --gradient_accumulation_steps 8
        --output_dir {output}
        --bf16
        --torch_dtype bfloat16
        --gradient_checkpointing
    """
    done = accelerate_launch(command.split(), preset="deepspeed_zero3", processes=2)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "torch_dtype is now dtype" in done.stdout
    assert "trainable params: " in done.stdout

    from transformers import AutoModelForImageTextToText, AutoProcessor

    load = AutoModelForImageTextToText.from_pretrained
    tuned, info = load(output, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # On a CPU without bf16 it is switched off, and ZeRO-3 then trains and saves float32.
    trained = torch.bfloat16 if find_device(use_cpu=True).bf16 else torch.float32
    assert {parameter.dtype for parameter in tuned.parameters()} == {trained}
    base = load(tiny_model("llava"), dtype="bfloat16")
    assert not base.lm_head.weight.equal(tuned.lm_head.weight)
    assert AutoProcessor.from_pretrained(output).chat_template


@pytest.mark.parametrize("size", ["7b", pytest.param("13b", marks=pytest.mark.slow)])
def test_alpaca_lora_run_file_trains_under_torchrun(
    tmp_path: Path, tiny_model: Callable[[str], Path], size: str
) -> None:
    rows = [
        {"instruction": f"Say {word}.", "input": "", "output": word}
        for word in ("red", "green", "blue", "two", "small", "large") * 40
    ]
    data = tmp_path / "alpaca.json"
    data.write_text(json.dumps(rows))
    output = tmp_path / "lora-alpaca"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), "-m", ENTRY]
    command += ["--config", str(ROOT / "launch" / f"llama_{size}-lora-4gpu.yaml")]
    command += ["--model_name_or_path", str(tiny_model("llama")), "--dataset_name", str(data)]
    command += [
        "--output_dir",
        str(output),
        "--use_cpu",
        "--eval_size",
        "16",
        "--logging_steps",
        "1",
    ]
    command += ["--max_steps", "4"]
    done = patience.run(command, timeout=280, env={**os.environ})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert len(losses(output)) == 4
    adapter = load_file(output / "adapter_model.safetensors")
    assert adapter
    assert all(tensor.isfinite().all() and tensor.any() for tensor in adapter.values())
    settings = json.loads((output / "adapter_config.json").read_text())
    assert settings["r"] == 8
    assert settings["lora_alpha"] == 16
