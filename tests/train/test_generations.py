"""What the model answers to fixed held-out rows at each evaluation, and what that leaves alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.launch import End, Entry, flags
from tests.support.rows import chat_rows, draw

Start = Callable[..., End]


@pytest.fixture
def start(tmp_path: Path, tiny_model: Callable[[str], Path], entry: Entry) -> Start:
    """Trains two steps of an adapter with dropout, and evaluates after each."""

    def call(family: str = "qwen2_vl", **values: Any) -> End:
        given = {
            "model_name_or_path": tiny_model(family),
            "dataset_name": tmp_path / "data" / "train.jsonl",
            "output_dir": tmp_path / "out",
            "eval_size": 5,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "eval_generation_tokens": 5,
            "per_device_train_batch_size": 4,
            "use_peft": True,
            "lora_dropout": 0.2,
            "max_steps": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
        } | values
        return entry(flags(given))

    return call


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def losses(out: Path) -> list[float]:
    names = ("loss", "eval_loss", "grad_norm")
    found = [[record.get(name) for name in names] for record in records(out / "metrics.jsonl")]
    return [value for values in found for value in values if value is not None]


@pytest.mark.parametrize("family", ["qwen2_vl", "llama"])
def test_first_four_rows_are_answered_and_training_is_as_without(
    start: Start, tmp_path: Path, family: str
) -> None:
    chat_rows(tmp_path / "data", 17, images=family != "llama")
    out, without = tmp_path / "out", tmp_path / "without"
    ends = [start(family, report_to="tensorboard")]
    ends.append(start(family, output_dir=without, eval_generations=0))
    assert [end.code for end in ends] == [0, 0], ends[0].err + ends[1].err

    found = records(out / "generations.jsonl")
    assert [record["step"] for record in found] == [1, 1, 1, 1, 2, 2, 2, 2]
    places = [record["row"] for record in found]
    assert len(set(places[:4])) == 4
    assert places[:4] == places[4:]
    assert found[0]["prompt"].endswith("?" if family == "qwen2_vl" else ".")
    assert found[0]["reference"].split()[0] in ("red", "green", "blue")
    assert all(isinstance(record["answer"], str) for record in found)
    images = [name for record in found[:4] for name in record["images"]]
    assert len(images) == (4 if family == "qwen2_vl" else 0)
    assert {path.name for path in out.glob("generations/*")} == set(images)

    assert losses(out) == losses(without)
    assert not (without / "generations.jsonl").exists()
    assert not (without / "generations").exists()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(out / "tensorboard")).Reload()
    texts = [tag for tag in curves.Tags()["tensors"] if tag.startswith("held_out_answers/row ")]
    assert len(texts) == 4
    assert [len(curves.Images(tag)) for tag in curves.Tags()["images"]] == [1] * len(images)


def test_images_are_kept_small(start: Start, tmp_path: Path) -> None:
    data = tmp_path / "data"
    chat_rows(data, 10)
    for number in range(10):
        draw(data / f"{number}.png", colour="red", size=(1200, 900))

    end = start(max_steps=1, eval_generations=1, max_pixels=3136)

    assert end.code == 0, end.err
    (record,) = records(tmp_path / "out" / "generations.jsonl")
    (name,) = record["images"]
    with Image.open(tmp_path / "out" / "generations" / name) as image:
        assert (image.format, image.size) == ("WEBP", (480, 360))


def test_rows_that_are_dropped_for_their_length_are_not_asked(start: Start, tmp_path: Path) -> None:
    file = chat_rows(tmp_path / "data", 12, images=False)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows[::2]:
        row["messages"][0]["content"] = "Say it, " * 200
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    end = start("llama", max_steps=1, eval_size=6, max_length=120, over_length="drop")

    assert end.code == 0, end.err
    found = records(tmp_path / "out" / "generations.jsonl")
    assert found
    assert not any("Say it, Say it" in record["prompt"] for record in found)


@pytest.mark.parametrize("written", [False, True])
def test_answers_that_cannot_be_written_are_told_once_and_training_goes_on(
    start: Start, tmp_path: Path, written: bool
) -> None:
    chat_rows(tmp_path / "data", 12)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "generations").write_text("in the way")

    end = start(**{"eval_generations": 2} if written else {})

    assert end.code == 0, end.err
    told = [line for line in end.out.splitlines() if "not answered any more" in line]
    assert len(told) == 1
    assert told[0].startswith("held-out rows are not answered any more, training goes on: FileE")
    assert not (tmp_path / "out" / "generations.jsonl").exists()
    assert len(losses(tmp_path / "out")) == 6


def test_row_that_cannot_be_asked_ends_a_run_that_wants_answers_before_it_trains(
    start: Start, tmp_path: Path
) -> None:
    chat_rows(tmp_path / "data", 12)
    for path in (tmp_path / "data").glob("*.png"):
        path.write_bytes(path.read_bytes()[:120])  # its header says its size

    end = start(eval_generations=1)

    assert end.code == 4
    assert "is corrupt or cut off" in end.err
    assert not (tmp_path / "out").exists()


def test_answers_of_plain_text_runs_go_on_from_the_prompt(start: Start, tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(12)]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))

    end = start("llama", dataset_name=tmp_path / "alpaca.json", eval_generations=1, max_steps=1)

    assert end.code == 0, end.err
    (record,) = records(tmp_path / "out" / "generations.jsonl")
    assert record["prompt"].endswith("### Response:\n")


def test_data_is_told_in_numbers_as_it_was_encoded(start: Start, tmp_path: Path) -> None:
    chat_rows(tmp_path / "data", 12)
    end = start(max_steps=1, eval_generations=0)
    assert end.code == 0, end.err

    told = json.loads((tmp_path / "out" / "data.json").read_text())
    assert [split["name"] for split in told["splits"]] == ["train", "eval"]
    assert [split["num_rows"] for split in told["splits"]] == [7, 5]
    assert [split["num_images"] for split in told["splits"]] == [7, 5]
    assert told["notes"][0].startswith("the assistant's words and their end of turn are trained")
