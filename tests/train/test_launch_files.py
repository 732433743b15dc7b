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
from tests.matrix.planned import member_of
from tests.support.launch import Entry, flags, losses


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


def chats(folder: Path) -> Path:
    """Rows shaped like trl-lib/Capybara: other columns, and several turns."""
    said = [("user", "Say {}."), ("assistant", "{}"), ("user", "Again?"), ("assistant", "{}!")]
    rows = [
        {
            "source": "drawn",
            "messages": [{"role": role, "content": text.format(n)} for role, text in said],
            "num_turns": 2,
        }
        for n in range(8)
    ]
    file = folder / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


DATA: dict[str, Callable[[Path], Path]] = {
    "philschmid/amazon-product-descriptions-vlm": products,
    "HuggingFaceH4/llava-instruct-mix-vsft": conversations,
    "trl-lib/Capybara": chats,
    "yahma/alpaca-cleaned": instructions,
}
RUNS = {file.stem: Run.from_file(file) for file in sorted(folder("launch").glob("*.yaml"))}


def names() -> list[Any]:
    """All run files; of those that follow no article, the first of each kind is not slow."""
    found, seen = list[Any](), set[tuple[str, str]]()
    for name, run in RUNS.items():
        kind = name.split("-")[1], str(run.get("dataset_name"))
        slow = run.is_set("method") and kind in seen
        found.append(pytest.param(name, marks=pytest.mark.slow if slow else ()))
        if run.is_set("method"):
            seen.add(kind)
    return found


def stand_ins(run: Run, folder: Path, tiny_model: Callable[[str], Path]) -> dict[str, Any]:
    """Returns the flags that put a tiny model and drawn rows in the place of the hub's."""
    model = run.get("model_name_or_path")
    values = {
        "model_name_or_path": tiny_model(member_of(model)),
        "dataset_name": DATA[run.get("dataset_name")](folder),
        "output_dir": folder / "out",
        "max_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
    }
    return values | (
        {"eval_size": 8, "eval_steps": 2, "save_steps": 2} if run.get("eval_size") else {}
    )


@pytest.mark.parametrize("name", names())
def test_run_file_trains_with_a_tiny_model_and_drawn_rows(
    tmp_path: Path, tiny_model: Callable[[str], Path], entry: Entry, name: str
) -> None:
    file, run = folder("launch") / f"{name}.yaml", RUNS[name]

    end = entry(["--config", str(file), *flags(stand_ins(run, tmp_path, tiny_model))])

    assert end.code == 0, end.err
    assert len(losses(tmp_path / "out")) == 2
    saved = "adapter_model.safetensors" if run.get("use_peft") else "model.safetensors"
    assert (tmp_path / "out" / saved).stat().st_size > 0
