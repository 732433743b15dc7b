"""Packed rows on a CUDA device, in bf16: the loss of their samples, whatever computes attention."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.launch import ENTRY, flags, losses
from tests.support.packed import Setting, num_trained
from tests.support.rows import mixed_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NEEDS_FLASH = pytest.mark.skipif(
    importlib.util.find_spec("flash_attn") is None, reason="needs flash-attn"
)


@pytest.mark.parametrize(
    "attention", ["sdpa", pytest.param("flash_attention_2", marks=NEEDS_FLASH)]
)
@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "llama"])
def test_packed_row_has_the_loss_of_its_samples(
    tiny_model: Callable[[str], Path], family: str, attention: str
) -> None:
    setting = Setting.load(tiny_model(family))
    if attention != "sdpa":
        setting.model.set_attn_implementation(attention)
    model = setting.model.to("cuda", torch.bfloat16)
    rows = setting.rows()
    alone, packed = setting.collate(packs=False), setting.collate(packs=True)
    count = num_trained(rows)

    def loss(*batches: dict[str, torch.Tensor]) -> float:
        with torch.no_grad():
            found = [
                model(
                    **{name: value.to("cuda") for name, value in batch.items()},
                    use_cache=False,
                    num_items_in_batch=count,
                ).loss
                for batch in batches
            ]
        return float(sum(found))

    assert loss(packed(rows)) == pytest.approx(loss(*[alone([row]) for row in rows]), rel=1e-2)


def test_packed_run_has_the_curve_of_the_padded_one_and_says_its_throughput(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    data = mixed_rows(tmp_path / "data", 22)

    def train(batching: str) -> Path:
        output = tmp_path / batching
        values = {
            "model_name_or_path": tiny_model("qwen2_vl"),
            "dataset_name": data,
            "output_dir": output,
            "batching": batching,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "max_steps": 6,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": "false",
            "tf32": "false",
        }
        command = [sys.executable, "-m", ENTRY, *flags(values)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert f"batching: {batching}" in done.stdout
        return output

    packed = train("pack")

    assert losses(packed) == pytest.approx(losses(train("pad")), rel=1e-3)
    records = map(json.loads, (packed / "metrics.jsonl").read_text().splitlines())
    steps = [record for record in records if "loss" in record]
    for name in ("tokens_per_s", "trained_tokens_per_s", "samples_per_s", "images_per_s"):
        assert all(step[name] > 0 for step in steps), name
    assert all(step["padding_share"] == 0 for step in steps)
