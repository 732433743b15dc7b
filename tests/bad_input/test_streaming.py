"""Streams that cannot be trained on: told in one line, with nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_input.support import assert_one_line, chat, files_under, write_rows
from tests.support.launch import Entry

MISTAKES: dict[str, tuple[dict[str, object], int, str]] = {
    # flags, exit code, message
    "no number of steps": ({"max_steps": -1}, 2, "dataset_streaming without max_steps"),
    "a part held out": ({"eval_size": 0.5}, 2, "eval_size 0.5 of a stream; allowed: a count"),
    "all held out": ({"eval_size": 3}, 4, "eval_size 3 of a stream of 3 rows; hold fewer"),
    "by length": (
        {"train_sampling_strategy": "group_by_length"},
        2,
        "train_sampling_strategy group_by_length with dataset_streaming",
    ),
    "no buffer": ({"shuffle_buffer_size": 0}, 2, "shuffle_buffer_size is 0; allowed: 1 or more"),
    "no such split": (
        {"dataset_train_split": "dev"},
        4,
        "rows.jsonl has no split 'dev' to stream; allowed: train",
    ),
    "evaluation without rows": (
        {"eval_strategy": "steps"},
        2,
        "eval_strategy steps without rows to evaluate on; set eval_size",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_stream_that_cannot_be_trained_on_is_one_line(
    here: Path, entry: Entry, flags_of: Callable[[dict], list[str]], case: str
) -> None:
    values, code, message = MISTAKES[case]
    write_rows(here, [chat(images=["a.png"])] * 3)
    before = files_under(here)
    assert_one_line(entry(flags_of({"dataset_streaming": True, **values})), code, message)
    assert files_under(here) == before
