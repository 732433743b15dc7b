"""Rows that break between encoding and training are left out and counted, until too many have."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.launch import Entry, entry_script, flags, losses
from tests.support.lengths import token_counts
from tests.support.plant import planted
from tests.support.rows import chat_rows

CUT, SWAPPED = (1, 6), 9
"""Of the rows whose image is cut off, and of the one whose image is exchanged for a larger one."""
ROTTEN = (*CUT, SWAPPED)

Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = chat_rows(folder / "rows", 12)
    from PIL import Image

    Image.new("RGB", (500, 500)).save(folder / "larger.png")
    return rows


@pytest.fixture(scope="module")
def clean(data: Path) -> Path:
    """The same rows without those that rot."""
    lines = data.read_text().splitlines(keepends=True)
    kept = [line for number, line in enumerate(lines) if number not in ROTTEN]
    path = data.parent / "clean.jsonl"
    path.write_text("".join(kept))
    return path


@pytest.fixture(scope="module")
def entry(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    folder = data.parent
    env = planted(
        what="rot_files",
        cut=[str(folder / f"{number}.png") for number in CUT],
        swapped={str(folder / f"{SWAPPED}.png"): str(folder.parent / "larger.png")},
    )
    with entry_script(tmp_path_factory.mktemp("cache"), env) as run:
        yield run


@pytest.fixture
def run(entry: Entry, data: Path, tiny_model: Folders) -> Callable[..., Any]:
    """Trains on whole images, which rot once they are encoded."""
    pictures = {path: path.read_bytes() for path in data.parent.glob("*.png")}

    def train(out: Path, **changes: Any) -> Any:
        for path, content in pictures.items():
            path.write_bytes(content)
        values = {
            "model_name_or_path": tiny_model("qwen2_vl"),
            "dataset_name": data,
            "output_dir": out,
            "per_device_train_batch_size": 4,
            "num_train_epochs": 1,
            "train_sampling_strategy": "sequential",
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "save_first_step": False,
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
        }
        return entry(flags({name: v for name, v in (values | changes).items() if v is not None}))

    yield train
    for path, content in pictures.items():
        path.write_bytes(content)


def records_of(out: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (out / "metrics.jsonl").read_text().splitlines()))


def told(out: Path) -> list[tuple[int, str]]:
    return [(one["step"], one["bad_row"]) for one in records_of(out) if "bad_row" in one]


def test_first_broken_row_ends_the_run_where_none_are_allowed(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    end = run(tmp_path / "out")
    assert end.code == 4
    assert end.err.splitlines()[-1].startswith(
        "error: train row 1 (from 0): image '1.png' is corrupt or cut off: "
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"batching": "pack", "dataloader_num_workers": 0},
        {"batching": "pad", "dataloader_num_workers": 1},
    ],
)
def test_broken_rows_are_left_out_of_their_steps(
    tmp_path: Path, run: Callable[..., Any], clean: Path, tiny_model: Folders, changes: Any
) -> None:
    out = tmp_path / "out"

    end = run(out, max_bad_samples=3, num_train_epochs=2, **changes)

    assert end.code == 0, end.err
    # Once each, though the second epoch meets them again.
    assert told(out) == [(step + 1, f"train row {row} (from 0)") for step, row in enumerate(ROTTEN)]
    whys = [record["why"] for record in records_of(out) if "bad_row" in record]
    assert whys[0].startswith("train row 1 (from 0): image '1.png' is corrupt or cut off")
    assert whys[2].startswith("train row 9 (from 0): the images of a batch take ")
    lines = [line for line in end.out.splitlines() if line.startswith("left out at step")]
    assert [line.rpartition(" (")[2] for line in lines] == [
        f"{number} of 3 allowed)" for number in (1, 2, 3)
    ]
    # Each step is what it is on data without the rows, and so are the counts.
    other = tmp_path / "clean"
    end = run(
        other, dataset_name=clean, per_device_train_batch_size=3, num_train_epochs=2, **changes
    )
    assert end.code == 0, end.err
    assert losses(out) == pytest.approx(losses(other), abs=1e-6)
    tokens = [record["num_tokens"] for record in records_of(out) if "loss" in record]
    assert tokens[-1] == 2 * sum(token_counts(tiny_model("qwen2_vl"), clean))


def test_one_broken_row_too_many_ends_the_run(tmp_path: Path, run: Callable[..., Any]) -> None:
    out = tmp_path / "out"
    end = run(out, max_bad_samples=2)
    assert end.code == 4
    line = end.err.splitlines()[-1]
    assert line.startswith(
        "error: 3 rows broke while training: train row 1 (from 0): image '1.png'"
    )
    assert "train row 6 (from 0): image '6.png'" in line
    assert "train row 9 (from 0): the images of a batch" in line
    assert "allowed: 2 (max_bad_samples); put them right" in line
    assert len(told(out)) == 3


def test_run_that_goes_on_counts_on(tmp_path: Path, run: Callable[..., Any]) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, max_bad_samples=3, save_strategy="steps", save_steps=2).code == 0
    checkpoint = whole / "checkpoint-2"
    again = {"resume_from_checkpoint": checkpoint}

    end = run(parts, max_bad_samples=3, **again)

    assert end.code == 0, end.err
    assert told(parts) == [(3, "train row 9 (from 0)")]
    assert "(3 of 3 allowed)" in end.out
    assert losses(parts) == losses(whole)[2:]
    assert run(tmp_path / "fewer", max_bad_samples=2, **again).code == 4


def test_steps_and_micro_batches_of_broken_rows_alone_go_by(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    changes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    end = run(out, max_bad_samples=3, **changes)
    assert end.code == 0, end.err
    assert [step for step, _ in told(out)] == [row + 1 for row in ROTTEN]
    assert len(losses(out)) == 12
    assert [step + 1 for step, loss in enumerate(losses(out)) if loss == 0] == [2, 7, 10]


def test_broken_held_out_row_ends_the_evaluation(
    tmp_path: Path, run: Callable[..., Any], clean: Path, data: Path
) -> None:
    for split, source in (("train", clean), ("test", data)):
        (tmp_path / f"{split}.jsonl").write_text(source.read_text())
    changes = {"dataset_name": tmp_path, "image_root": data.parent}
    end = run(
        tmp_path / "out",
        **changes,
        max_bad_samples=3,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=2,
    )
    assert end.code == 4
    assert end.err.splitlines()[-1].startswith("error: eval row 1 (from 0): image '1.png' is corr")


def test_rows_of_a_stream_are_left_out_where_they_cannot_be_encoded_either(
    tmp_path: Path, run: Callable[..., Any], data: Path
) -> None:
    bad = {"messages": [{"role": "user", "content": "a"}], "images": []}
    lines = data.read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines[:4], json.dumps(bad), *lines[4:], ""]))
    out = tmp_path / "out"
    changes = {
        "dataset_name": tmp_path / "rows.jsonl",
        "image_root": data.parent,
        "dataset_streaming": True,
        "train_sampling_strategy": None,
        "shuffle_buffer_size": 1,
        "max_steps": 4,
        "dataloader_num_workers": 1,
    }

    end = run(out, max_bad_samples=4, **changes)

    assert end.code == 0, end.err
    rows = [row for _, row in told(out)]
    assert [int(row.split()[2]) for row in rows] == [1, 4, 7]  # 10's new image has its own tokens
    whys = [record["why"] for record in records_of(out) if "bad_row" in record]
    assert "there is no assistant turn to train on" in whys[1]

    end = run(tmp_path / "strict", **changes)
    assert end.code == 4
    # The look at some rows before training reads no pixels, and meets that row first.
    assert end.err.splitlines()[-1].startswith("error: train row 4 (from 0): there is no assistant")
