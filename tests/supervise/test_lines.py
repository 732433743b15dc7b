"""The last lines of a file, and the new ones of one that grows."""

from __future__ import annotations

from pathlib import Path

import pytest

from sailplan.supervise.lines import Growing, last_lines


@pytest.mark.parametrize(
    ("num_bytes", "lines"),
    [
        (1, []),
        (5, ["five"]),
        (6, ["five"]),
        (9, ["five"]),
        (10, ["four", "five"]),
        (1000, ["one", "two", "three", "four", "five"]),
    ],
)
def test_last_lines_are_whole_ones(tmp_path: Path, num_bytes: int, lines: list[str]) -> None:
    file = tmp_path / "file"
    file.write_text("one\ntwo\nthree\nfour\nfive\n")
    assert last_lines(file, num_bytes) == lines


def test_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "none", 10) == []
    assert Growing(tmp_path / "none").new_lines() == []


def test_growing_file_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    growing = Growing(path)
    with path.open("a") as file:
        for written, lines in [
            ("one\nt", ["one"]),
            ("", []),
            ("w", []),
            ("o\n\nthree\n", ["two", "", "three"]),
        ]:
            file.write(written)
            file.flush()
            assert growing.new_lines() == lines
    assert growing.num_replaced == 0


def test_file_that_is_begun_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a long line\n")
    growing = Growing(path)
    growing.new_lines()
    path.write_text("short\n")
    assert growing.new_lines() == ["short"]
    assert growing.num_replaced == 1
