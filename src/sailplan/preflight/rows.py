"""The first rows of a run's data, looked at without the libraries that read all of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sailplan.data import local
from sailplan.data.conversations import Llava, Messages
from sailplan.errors import DataError
from sailplan.run.config import Run

NUM_ROWS = 64
"""Rows of each file that are looked at."""

_SUFFIX = ".jsonl"
"""Of files whose first rows can be read without the others."""

_OTHER_FORMATS = ("prompt", "instruction", "user_prompt", "answer_column")
"""Columns and fields beside which a chat's column may not be what is trained on."""


def check_first_rows(run: Run) -> None:
    """Refuses data whose first rows are no JSON, or no chats that can be trained on.

    Only what is certain counts: local JSON Lines of chats, in the order in which they are trained
    from. `sailplan inspect` looks at every row and says more.

    Raises:
        DataError: A row is wrong; the message says which.
    """
    name = run.get("dataset_name")
    plain = run.get("dataset_train_split") == "train" and not run.get("datasets")
    if not name or not plain:
        return
    for path in _files(Path(name).expanduser()):
        for number, row in _first_rows(path):
            _check(run, row, f"{path}, line {number}")


def _files(path: Path) -> Iterator[Path]:
    """Yields the files of rows to train on."""
    if path.is_file():
        files = [path]
    elif path.is_dir() and not local.is_saved_dataset(path) and not local.has_own_layout(path):
        files = local.by_split(path, local.data_files(path)).get("train", [])
    else:
        files = []
    yield from (file for file in files if file.suffix.lower() == _SUFFIX)


def _first_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(itertools.islice(file, NUM_ROWS), start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}, column {error.colno}: {error.msg}",
                    todo="correct the line",
                ) from None


def _check(run: Run, row: Any, place: str) -> None:
    if not isinstance(row, Mapping):
        raise DataError(f"{place} holds a {type(row).__name__}", allowed="an object, such as {…}")
    others = [name for name in _OTHER_FORMATS if name in row or run.explicit.get(name)]
    wanted = run.get("dataset_format")
    known = {"messages": "messages", "conversations": "llava"}
    kinds = [kind for column, kind in known.items() if column in row and wanted in ("auto", kind)]
    if others or len(kinds) != 1 or run.is_set("dataset_text_field"):
        return
    named = run.get("image_columns") or ("images", "image")
    columns = tuple(name for name in named if name in row)
    chat = Messages if kinds == ["messages"] else Llava
    try:
        chat(image_columns=columns).sample(row)
    except DataError as error:
        got = f"{place}: {error.got}"
        raise DataError(got, allowed=error.allowed, todo=error.todo) from None
