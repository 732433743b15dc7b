"""Files are written whole or not at all."""

from __future__ import annotations

import pytest

from sailplan.errors import RunFileError
from sailplan.files import preset, write_text_atomically


def test_write_text_replaces_whole_and_leaves_no_neighbour(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomically(path, "one")
    write_text_atomically(path, "zwei ü")

    assert path.read_text(encoding="utf-8") == "zwei ü"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_write_text_has_the_rights_of_an_ordinary_file(tmp_path):
    write_text_atomically(tmp_path / "a.txt", "one")
    (tmp_path / "b.txt").touch()

    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_write_text_that_fails_keeps_the_older_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "new \ud800")

    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_preset_unknown_lists_what_there_is():
    with pytest.raises(RunFileError, match="no accelerate preset 'zero9'"):
        preset("zero9")
