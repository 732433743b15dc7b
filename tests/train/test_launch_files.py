"""Every run file trains as it is written, with a tiny model and drawn rows in the hub's place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sailplan.files import folder
from sailplan.run.config import Run
from tests.support.launch import Entry, flags, losses

FAMILIES = {
    "Qwen/Qwen2-VL": "qwen2_vl",
    "Qwen/Qwen2.5-VL": "qwen2_5_vl",
    "Qwen/Qwen3-VL": "qwen3_vl",
    "allenai/Molmo2": "molmo2",
    "huggyllama/llama": "llama",
    "llava-hf/llava-1.5": "llava",
    "meta-llama/Llama-3.2-11B-Vision": "mllama",
    "mistral-community/pixtral": "pixtral",
}
"""The family of a stand-in, by the beginning of the model's name on the hub."""


def products(folder: Path) -> Path:
    """Rows shaped like philschmid/amazon-product-descriptions-vlm: other columns among them."""
    import datasets

    rows = {
        "image": [Image.effect_noise((60 + 9 * n, 70), 40).convert("RGB") for n in range(8)],
        "Uniq Id": [str(n) for n in range(8)],
        "Product Name": [f"Runner {n}" for n in range(8)],
        "Category": ["Shoes | Running", None] * 4,
        "description": [f"A light shoe, number {n}." for n in range(8)],
    }
    rows["Category"] = [category or "Shoes" for category in rows["Category"]]
    file = folder / "products.parquet"
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(file)
    return file


def conversations(folder: Path) -> Path:
    """Rows shaped like HuggingFaceH4/llava-instruct-mix-vsft."""
    import datasets

    part = {name: datasets.Value("string") for name in ("text", "type")}
    turn = {"content": datasets.List({"index": datasets.Value("int64"), **part})}
    turn["role"] = datasets.Value("string")
    features = datasets.Features(
        {"messages": datasets.List(turn), "images": datasets.List(datasets.Image())}
    )
    user = [{"index": None, "text": "What is it?\n", "type": "text"}]
    user.append({"index": 0, "text": None, "type": "image"})
    answer = [{"index": None, "text": "A red shoe.", "type": "text"}]
    row = {"messages": [{"role": "user", "content": user}]}
    row["messages"].append({"role": "assistant", "content": answer})
    rows = [{**row, "images": [Image.new("RGB", (60 + n, 70), "red")]} for n in range(8)]
    file = folder / "mix.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(file)
    return file


def instructions(folder: Path) -> Path:
    """Rows shaped like yahma/alpaca-cleaned."""
    rows = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(40)]
    file = folder / "alpaca.json"
    file.write_text(json.dumps(rows))
    return file


DATA: dict[str, Callable[[Path], Path]] = {
    "philschmid/amazon-product-descriptions-vlm": products,
    "HuggingFaceH4/llava-instruct-mix-vsft": conversations,
    "yahma/alpaca-cleaned": instructions,
}


def stand_ins(run: Run, folder: Path, tiny_model: Callable[[str], Path]) -> dict[str, Any]:
    """Returns the flags that put a tiny model and drawn rows in the place of the hub's."""
    model = run.get("model_name_or_path")
    (family,) = (family for begin, family in FAMILIES.items() if model.startswith(begin))
    values = {
        "model_name_or_path": tiny_model(family),
        "dataset_name": DATA[run.get("dataset_name")](folder),
        "output_dir": folder / "out",
        "max_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
    }
    return values | (
        {"eval_size": 8, "eval_steps": 2, "save_steps": 2} if run.get("eval_size") else {}
    )


@pytest.mark.parametrize("name", sorted(file.stem for file in folder("launch").glob("*.yaml")))
def test_run_file_trains_with_a_tiny_model_and_drawn_rows(
    tmp_path: Path, tiny_model: Callable[[str], Path], entry: Entry, name: str
) -> None:
    file = folder("launch") / f"{name}.yaml"
    run = Run.from_file(file)

    end = entry(["--config", str(file), *flags(stand_ins(run, tmp_path, tiny_model))])

    assert end.code == 0, end.err
    assert len(losses(tmp_path / "out")) == 2
    saved = "adapter_model.safetensors" if run.get("use_peft") else "model.safetensors"
    assert (tmp_path / "out" / saved).stat().st_size > 0
