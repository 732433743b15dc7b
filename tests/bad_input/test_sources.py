"""Sources that hold no rows: told in one line, before any rank starts or by the ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_input.support import RUN, assert_one_line, files_under, train
from tests.data.test_archives import png, tarred, zipped
from tests.support.launch import Entry

BEFORE_RANKS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "pattern without a match": (lambda _: None, "data/*.jsonl", "no file matches data/*.jsonl"),
    "zip that is none": (
        lambda here: (here / "rows.zip").write_bytes(b"PK\x03\x04 and no more"),
        "rows.zip",
        "rows.zip is no zip archive, or cut off",
    ),
    "tar that is not there": (lambda _: None, "shards/0.tar", "there is no shards/0.tar"),
}


@pytest.mark.parametrize("case", BEFORE_RANKS)
def test_source_without_rows_is_one_line_before_ranks_start(here: Path, case: str) -> None:
    make, name, message = BEFORE_RANKS[case]
    make(here)
    before = files_under(here)
    assert_one_line(train(RUN, "--dataset_name", name), 4, message)
    assert files_under(here) == before


def test_sample_of_another_kind_is_one_line(
    here: Path, entry: Entry, flags_of: Callable[[dict], list[str]]
) -> None:
    tarred(here / "a.tar", {"1.json": b"{}", "1.pickle": b"\x80"})
    end = entry(flags_of({"dataset_name": "a.tar"}))
    assert_one_line(end, 4, "a.tar holds 1.pickle, which is no part of a sample")


def test_image_that_its_archive_lacks_is_one_line(
    here: Path, entry: Entry, flags_of: Callable[[dict], list[str]]
) -> None:
    zipped(here / "images.zip", {"b.png": png()})
    end = entry(flags_of({"image_root": "images.zip"}))
    assert_one_line(end, 4, "train row 0 (from 0): ")
    assert "images.zip holds no a.png" in end.err
