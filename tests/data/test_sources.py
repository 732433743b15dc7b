"""Loading rows from files of every kind, and refusing what is none."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from sailplan.data.sources import load_rows
from sailplan.data.streaming import Stream
from sailplan.errors import DataError, RunFileError
from sailplan.run.config import Run

RunOn = Callable[..., Run]

ROWS = [{"question": f"q{i}", "answer": str(i)} for i in range(10)]

CHAT = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A boat."}]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows in the format that the name tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix in (".csv", ".tsv"):
        sep = "," if path.suffix == ".csv" else "\t"
        lines = [rows[0].keys(), *(map(str, row.values()) for row in rows)]
        path.write_text("".join(sep.join(line) + "\n" for line in lines))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


@pytest.mark.parametrize(
    "name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "saved", "spaces in it/a b.jsonl"]
)
def test_rows_of_each_kind_of_file_are_loaded(tmp_path: Path, run_on: RunOn, name: str) -> None:
    path = write(tmp_path / name, ROWS)

    rows = load_rows(run_on(path))

    assert [{key: str(row[key]) for key in row} for row in rows.train] == ROWS
    assert rows.eval is None
    assert rows.entries[0].folder == (path if path.is_dir() else path.parent)


def test_rows_of_saved_dataset_dict_keep_their_splits(tmp_path: Path, run_on: RunOn) -> None:
    splits = {
        name: datasets.Dataset.from_list(rows)
        for name, rows in {"train": ROWS[:7], "test": ROWS[7:]}.items()
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")

    rows = load_rows(run_on(tmp_path / "saved"))

    assert rows.eval is not None
    assert (len(rows.train), len(rows.eval)) == (7, 3)


def test_folder_of_json_and_images_is_read_for_its_json(tmp_path: Path, run_on: RunOn) -> None:
    write(tmp_path / "train.json", [{"image": "images/0.png", "conversations": CHAT}] * 2)
    write(tmp_path / "val.json", [{"image": "images/1.png", "conversations": CHAT}])
    (tmp_path / "images").mkdir()
    for number in range(5):
        (tmp_path / "images" / f"{number}.png").write_bytes(png())

    rows = load_rows(run_on(tmp_path, "--dataset_test_split", "validation"))

    assert rows.train["image"] == ["images/0.png"] * 2
    assert rows.eval is not None
    assert rows.eval["image"] == ["images/1.png"]
    assert rows.entries[0].folder == tmp_path


def test_folder_with_image_metadata_is_read_as_an_image_folder(
    tmp_path: Path, run_on: RunOn
) -> None:
    (tmp_path / "0.png").write_bytes(png())
    write(tmp_path / "metadata.jsonl", [{"file_name": "0.png", "answer": "red"}])

    [row] = load_rows(run_on(tmp_path)).train

    assert row == {"image": {"bytes": None, "path": str(tmp_path / "0.png")}, "answer": "red"}


def test_folder_with_a_card_is_read_as_the_card_says(tmp_path: Path, run_on: RunOn) -> None:
    write(tmp_path / "one.jsonl", ROWS[:1])
    write(tmp_path / "two.jsonl", ROWS[:2])
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: one\n  data_files: one.jsonl\n"
        "- config_name: two\n  data_files: two.jsonl\n---\n"
    )

    rows = load_rows(run_on(tmp_path, "--dataset_config", "two"))

    assert len(rows.train) == 2


def test_folder_of_several_kinds_of_data_is_refused(tmp_path: Path, run_on: RunOn) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    write(tmp_path / "b.csv", ROWS)

    with pytest.raises(DataError, match=r"several kinds: a\.jsonl, b\.csv"):
        load_rows(run_on(tmp_path))


def test_json_with_image_missing_single_and_several_is_loaded(
    tmp_path: Path, run_on: RunOn
) -> None:
    images: list[Any] = ["a.png", None, ["a.png", "b.png"]]
    raw = [{"id": i, "image": image, "conversations": CHAT} for i, image in enumerate(images)]
    del raw[1]["image"]
    path = write(tmp_path / "llava.json", raw)

    rows = load_rows(run_on(path)).train

    assert [row["image"] for row in rows] == images
    assert rows[2]["conversations"] == CHAT


def test_jsonl_whose_images_begin_late_is_loaded(tmp_path: Path, run_on: RunOn) -> None:
    text = {"messages": [{"role": "user", "content": "x" * 20_000}]}
    path = write(tmp_path / "late.jsonl", [text] * 600 + [{**text, "images": ["a.png"]}])

    rows = load_rows(run_on(path)).train

    assert rows[0]["images"] is None
    assert rows[600]["images"] == ["a.png"]


def test_json_of_nothing_but_dates_keeps_them_as_written(tmp_path: Path, run_on: RunOn) -> None:
    raw = [
        {"answer": day, "messages": [{"role": "user", "content": f"{day}T10:00:00Z"}]}
        for day in ("2024-05-01", "2024-05-02")
    ]

    assert list(load_rows(run_on(write(tmp_path / "a.jsonl", raw))).train) == raw


def test_csv_cells_are_the_text_that_is_written(tmp_path: Path, run_on: RunOn) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,Unit Price,name\n007,12.50,NA\n,True,None\n1e3,,\n")

    rows = load_rows(run_on(path)).train

    assert list(rows) == [
        {"id": "007", "Unit Price": "12.50", "name": "NA"},
        {"id": None, "Unit Price": "True", "name": "None"},
        {"id": "1e3", "Unit Price": None, "name": None},
    ]


FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "images": datasets.List(datasets.Image()),
        "messages": datasets.List({"content": datasets.List({"image": datasets.Image()})}),
    }
)


@pytest.mark.parametrize("name", ["a.parquet", "saved"])
def test_images_in_columns_lists_and_parts_stay_encoded(
    tmp_path: Path, run_on: RunOn, name: str
) -> None:
    stored = {"bytes": png(), "path": None}
    row = {
        "image": stored,
        "images": [stored, stored],
        "messages": [{"content": [{"image": stored}, {"image": None}]}],
    }
    data = datasets.Dataset.from_list([row], features=FEATURES)
    path = tmp_path / name
    data.to_parquet(path) if path.suffix else data.save_to_disk(path)

    rows = load_rows(run_on(path)).train

    assert rows[0] == row
    assert rows.map(lambda row: {"kind": type(row["images"][0]).__name__})["kind"] == ["dict"]


def test_eval_size_holds_out_the_same_rows_every_time(tmp_path: Path, run_on: RunOn) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)

    first, again, other = (
        load_rows(run_on(path, "--eval_size", "3", "--seed", seed)) for seed in ("1", "1", "2")
    )

    assert first.eval is not None
    assert again.eval is not None
    assert other.eval is not None
    assert len(first.eval) == 3
    assert sorted([*first.train["answer"], *first.eval["answer"]], key=int) == [
        row["answer"] for row in ROWS
    ]
    assert list(first.train["answer"]) == sorted(first.train["answer"], key=int)
    assert list(first.eval["answer"]) == list(again.eval["answer"])
    assert list(first.eval["answer"]) != list(other.eval["answer"])


@pytest.mark.parametrize("size", ["1", "2", "5", "9"])
def test_numbers_say_where_rows_were_before_some_were_held_out(
    tmp_path: Path, run_on: RunOn, size: str
) -> None:
    rows = load_rows(run_on(write(tmp_path / "a.jsonl", ROWS), "--eval_size", size))

    assert rows.eval is not None
    for split, held in (("train", rows.train), ("eval", rows.eval)):
        assert [int(answer) for answer in held["answer"]] == rows.numbers[split]


def test_eval_size_below_one_is_a_fraction(tmp_path: Path, run_on: RunOn) -> None:
    rows = load_rows(run_on(write(tmp_path / "a.jsonl", ROWS), "--eval_size", "0.2"))

    assert rows.eval is not None
    assert (len(rows.train), len(rows.eval)) == (8, 2)


@pytest.mark.parametrize("size", ["10", "11", "0.01"])
def test_eval_size_that_leaves_nothing_is_refused(tmp_path: Path, run_on: RunOn, size: str) -> None:
    with pytest.raises(RunFileError, match=rf"eval_size {size} of 10 rows; allowed: .* 1 to 9"):
        load_rows(run_on(write(tmp_path / "a.jsonl", ROWS), "--eval_size", size))


@pytest.mark.parametrize("option", ["dataset_train_split", "dataset_test_split"])
def test_split_that_is_not_there_is_refused_with_those_that_are(
    tmp_path: Path, run_on: RunOn, option: str
) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "dev.jsonl", ROWS[:2])

    with pytest.raises(DataError, match=r"'gold'; allowed: .*train \(10 rows\)") as caught:
        load_rows(run_on(tmp_path, f"--{option}", "gold"))
    assert "validation (2 rows)" in str(caught.value)


def test_evaluation_without_rows_for_it_is_refused(tmp_path: Path, run_on: RunOn) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)

    with pytest.raises(RunFileError, match="set eval_size"):
        load_rows(run_on(path, "--eval_strategy", "epoch"))
    with pytest.raises(RunFileError, match="both name"):
        load_rows(run_on(path, "--eval_size", "2", "--dataset_test_split", "train"))


@pytest.mark.parametrize("flag", ["--dataset_streaming", "--streaming"])
def test_rows_are_streamed_by_either_of_trls_names(
    tmp_path: Path, run_on: RunOn, flag: str
) -> None:
    rows = load_rows(run_on(write(tmp_path / "a.jsonl", ROWS), flag, "--max_steps", "1"))
    assert isinstance(rows.train, Stream)
    assert list(rows.train) == ROWS


def test_datasets_block_of_one_entry_is_loaded(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", ROWS)
    run_file = tmp_path / "run.yaml"
    run_file.write_text(
        "datasets:\n- path: json\n"
        f"  data_files: {data}\n  columns: [answer]\n  fraction: 0.5\ntest_split_size: 2\n"
    )

    rows = load_rows(Run.from_file(run_file))

    assert rows.eval is not None
    assert (len(rows.train), len(rows.eval)) == (8, 2)
    assert rows.train.column_names == ["answer"]
    assert rows.entries[0].folder == tmp_path


def test_run_without_dataset_is_refused() -> None:
    with pytest.raises(RunFileError, match="set dataset_name"):
        load_rows(Run.from_flags([]))


BAD_FILES = [
    ("empty.jsonl", "", "is empty"),
    ("blank.csv", " \n\n", "is empty"),
    ("none.json", "[]", "has no rows"),
    ("header.csv", "question,answer\n", "has no rows"),
    ("page.json", "<!DOCTYPE html>\n<html></html>", "web page"),
    ("page.csv", "<html><head>", "web page"),
    ("lfs.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ("not.parquet", "PAR?", "cannot load"),
    ("bad.jsonl", '{"a": 1}\n{"a": oops}\n', r"bad\.jsonl, line 2, column 7: Expecting value"),
    ("bad.json", '[{"a": 1},\n {"a": 2]\n', r"bad\.json, line 2, column 9: Expecting ',' del"),
    ("cut.json", '[{"a": 1}, {"a"', r"cut\.json, line 1, column 16: Expecting ':'"),
    ("bad.csv", "a,b\n1,2\n3,4,5\n", "Expected 2 fields in line 3, saw 3"),
    ("rows.xlsx", "PK", r"no data file; allowed: \.json"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD_FILES, ids=[bad[0] for bad in BAD_FILES])
@pytest.mark.parametrize("in_folder", [False, True])
def test_file_that_is_no_data_is_refused_in_one_line(
    tmp_path: Path, run_on: RunOn, name: str, text: str, message: str, in_folder: bool
) -> None:
    path = tmp_path / "data" / name
    path.parent.mkdir()
    path.write_text(text)
    if in_folder and path.suffix == ".xlsx":
        message = "cannot load"

    with pytest.raises(DataError, match=message) as caught:
        load_rows(run_on(path.parent if in_folder else path))

    assert "\n" not in str(caught.value)
    assert str(path.parent) in str(caught.value)


@pytest.mark.parametrize("name", ["latin.jsonl", "latin.csv"])
def test_text_that_is_not_utf8_is_refused_with_its_place(
    tmp_path: Path, run_on: RunOn, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes('{"a": "Café"}\n'.encode() * 100_000 + b'{"a": "Caf\xe9"}\n')

    with pytest.raises(DataError, match="not UTF-8 at line 100001"):
        load_rows(run_on(path))


@pytest.mark.parametrize("name", ["./none", "none.json", "data/sets/none", "~/none", "/none"])
def test_path_that_does_not_exist_is_told_from_a_hub_name(run_on: RunOn, name: str) -> None:
    with pytest.raises(DataError, match="there is no"):
        load_rows(run_on(name))


def test_hub_name_without_a_network_is_refused(run_on: RunOn) -> None:
    with pytest.raises(
        DataError, match=r"no folder here and not in the local cache, .* sailplan fetch"
    ):
        load_rows(run_on("nobody/nothing"))


def test_refusal_prints_nothing_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_text("PAR1 and nothing more")
    program = (
        "import sys; from sailplan.data.sources import load_rows; from sailplan.run.config "
        "import Run; from sailplan.errors import DataError\n"
        "try: load_rows(Run.from_flags(['--dataset_name', sys.argv[1]]))\n"
        "except DataError: print('refused')"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "bad.parquet")],
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert (done.stdout, done.stderr) == ("refused\n", "")
