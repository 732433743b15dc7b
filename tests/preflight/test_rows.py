"""The first rows: what is certainly wrong with them, and what is left to those who read all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sailplan.errors import DataError
from sailplan.preflight.rows import NUM_ROWS, check_first_rows
from sailplan.run.config import Run
from tests.cli.test_main import sailplan
from tests.preflight.machines import run_file

ASKED = {"role": "user", "content": "What is it?"}
ANSWERED = {"role": "assistant", "content": "A red shoe."}


def look(folder: Path, *rows: Any, name: str = "rows.jsonl", flags: tuple[str, ...] = ()) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines))
    check_first_rows(Run.from_flags(["--dataset_name", str(folder / name), *flags]))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, ANSWERED]},
        {"messages": [ASKED, ANSWERED], "images": ["a.png"]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
                ANSWERED,
            ],
            "image": "a.png",
        },
        {"conversations": [{"from": "human", "value": "<image>What?"},
                           {"from": "gpt", "value": "A shoe."}], "image": "a.png"},
        {"messages": [], "prompt": "What?", "completion": "A shoe."},
        {"text": "anything"},
        {"messages": json.dumps([ASKED, ANSWERED])},
    ],
)  # fmt: skip
def test_rows_that_train_pass(tmp_path: Path, row: Any) -> None:
    look(tmp_path, row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"messages": [}', r"rows\.jsonl, line 2, column 15: Expecting value; correct the line"),
        ("[1, 2]", r"line 2 holds a list; allowed: an object"),
        ({"messages": [ASKED]}, r"rows\.jsonl, line 2: .*assistant"),
        ({"messages": [{"role": "usr", "content": "What?"}, ANSWERED]}, "line 2: .*usr"),
        ({"conversations": [{"from": "human", "value": "What?"}]}, r"line 2: "),
    ],
)
def test_row_that_cannot_be_trained_on_is_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        look(tmp_path, "", row)  # an empty line is none, and counts


def test_rows_further_down_and_other_files_are_left_to_inspection(tmp_path: Path) -> None:
    look(tmp_path, *[{"text": "one"}] * NUM_ROWS, "not JSON")
    look(tmp_path, "[", name="rows.json")
    look(tmp_path, {"messages": [ASKED]}, flags=("--dataset_train_split", "train[1:]"))


def test_row_that_cannot_be_trained_on_stops_a_launch(tmp_path: Path) -> None:
    path = run_file(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [ASKED]}) + "\n")
    code, _, err = sailplan("train", str(path), "--launch.cpu", "true")
    assert code == 4
    assert f"error: {tmp_path}/rows.jsonl, line 1: " in err
    assert not (tmp_path / "out").exists()
