"""Mixtures that cannot be put together: told in one line, with the entry, nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.bad_input.support import assert_one_line, chat, files_under, write_rows
from tests.support.launch import Entry

FIRST = {"path": "rows.jsonl", "fraction": 1}
MISTAKES: dict[str, tuple[list[dict[str, object]], int, str]] = {
    # the second entry and any after it, exit code, message
    "share in one entry alone": (
        [{"path": "rows.jsonl"}],
        2,
        "1 of 2 entries have a fraction; allowed: a fraction in every entry, or in none",
    ),
    "share below zero": (
        [{"path": "rows.jsonl", "fraction": -1}],
        2,
        "the fractions are 1, -1; allowed: shares of 0 or more",
    ),
    "key that no entry has": (
        [{"path": "rows.jsonl", "fractoin": 1}],
        2,
        "unknown key 'fractoin' (known: path, name, ",
    ),
    "entry without a path": ([{"fraction": 1}], 2, "path"),
    "file that is not there": (
        [{"path": "none.jsonl", "fraction": 1}],
        4,
        "/none.jsonl; check the path",
    ),
    "column that is not there": (
        [{"path": "rows.jsonl", "fraction": 1, "columns": ["messages", "label"]}],
        4,
        "rows.jsonl has no column 'label'; allowed: 'messages', 'images'",
    ),
    "formats that differ": (
        [{"path": "text.jsonl", "fraction": 1}],
        4,
        "; in entry 2 ({here}/text.jsonl): 'text'",
    ),
    "image that is missing": (
        [{"path": "bad/rows.jsonl", "fraction": 1}],
        4,
        "train row 1 (from 0) of entry 2 ({here}/bad/rows.jsonl): image 'none.png' is missing",
    ),
}


def absolute(folder: Path, one: dict[str, object]) -> dict[str, object]:
    """The entry with its path as the shared process, which runs elsewhere, finds it."""
    return {**one, "path": str(folder / str(one["path"]))} if "path" in one else one


@pytest.mark.parametrize("case", MISTAKES)
def test_mixture_that_cannot_be_is_one_line(
    here: Path, entry: Entry, flags_of: Callable[[dict], list[str]], case: str
) -> None:
    more, code, message = MISTAKES[case]
    write_rows(here, [chat(images=["a.png"])] * 3)
    (here / "text.jsonl").write_text(json.dumps({"text": "one row"}) + "\n")
    (here / "bad").mkdir()
    (here / "bad" / "a.png").write_bytes((here / "a.png").read_bytes())
    write_rows(here / "bad", [chat(images=["a.png"]), chat(images=["none.png"])])
    (here / "mixture.yaml").write_text(
        yaml.safe_dump({"datasets": [absolute(here, one) for one in (FIRST, *more)]})
    )
    before = files_under(here)
    flags = flags_of({"config": here / "mixture.yaml"})
    place = flags.index("--dataset_name")
    end = entry(flags[:place] + flags[place + 2 :])
    assert_one_line(end, code, message.replace("{here}", str(here)))
    assert files_under(here) == before
