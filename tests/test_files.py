"""Files are written whole or not at all."""

from __future__ import annotations

import pytest

from sailplan.errors import RunFileError
from sailplan.files import preset, write_atomically


def test_write_replaces_whole_and_leaves_no_neighbour(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, b"one")
    write_atomically(path, b"two\r\n\xff")

    assert path.read_bytes() == b"two\r\n\xff"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_write_has_the_rights_of_an_ordinary_file(tmp_path):
    write_atomically(tmp_path / "a.txt", b"one")
    (tmp_path / "b.txt").touch()

    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_write_that_fails_leaves_no_neighbour(tmp_path):
    path = tmp_path / "a.txt"
    path.mkdir()

    with pytest.raises(IsADirectoryError):
        write_atomically(path, b"new")

    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_preset_unknown_lists_what_there_is():
    with pytest.raises(RunFileError, match="no accelerate preset 'zero9'"):
        preset("zero9")
