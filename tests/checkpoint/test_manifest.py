"""A manifest knows every file of its checkpoint, is written last, and is whole or not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from sailplan.checkpoint import manifest
from sailplan.checkpoint.manifest import MANIFEST, PIECE_BYTES, FileRecord, take_stock
from sailplan.errors import CheckpointError
from tests.checkpoint.saved import OPTIMIZER, manifest_of, save, save_files


def test_stock_lists_every_file_but_the_manifest(tmp_path: Path) -> None:
    folder = save(tmp_path, 4)
    (folder / ".manifest.json.x.tmp").write_text("left by a kill")

    found = take_stock(folder)

    assert list(found) == sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and MANIFEST not in path.name
    )
    assert OPTIMIZER.format(4) in found
    for name, record in found.items():
        content = (folder / name).read_bytes()
        assert record == FileRecord(num_bytes=len(content), xxh3=xxhash.xxh3_64_hexdigest(content))


@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES + 1])
def test_stock_of_a_file_in_pieces_is_that_of_the_whole(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "large").write_bytes(content)
    counted: list[int] = []

    found = take_stock(tmp_path, told=counted.append)

    assert found["large"].xxh3 == xxhash.xxh3_64_hexdigest(content)
    assert sum(counted) == size
    assert max(counted) <= PIECE_BYTES


def test_stock_is_the_same_whatever_the_threads(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.bin").write_bytes(os.urandom(1000 * number))

    assert take_stock(tmp_path, threads=1) == take_stock(tmp_path, threads=7)


def test_stock_that_is_interrupted_ends_at_once(tmp_path: Path) -> None:
    for name in "ab":
        with (tmp_path / name).open("wb") as file:
            file.truncate(100 * PIECE_BYTES)
    pieces = 0

    def told(_: int) -> None:
        nonlocal pieces
        pieces += 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_stock(tmp_path, threads=2, told=told)

    assert pieces <= 4
    assert not [one for one in threading.enumerate() if one.name.startswith("manifest")]


def test_stock_refuses_a_link_that_leaves_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    save_files(folder, 4)
    (tmp_path / "secret").write_text("not of the checkpoint")
    link = folder / "link.bin"

    link.symlink_to("model.safetensors")
    assert take_stock(folder)["link.bin"] == take_stock(folder)["model.safetensors"]

    link.unlink()
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"link\.bin leaves"):
        take_stock(folder)

    link.unlink()
    link.symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(CheckpointError, match=r"link\.bin leaves"):
        take_stock(folder)


def test_manifest_reads_back_what_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    save_files(folder, 4)
    written = manifest_of(folder, 4, first=True)

    manifest.write(folder, written)

    assert manifest.read(folder) == written
    text = (folder / MANIFEST).read_text()
    found = json.loads(text)
    assert list(found) == sorted(found)
    assert text.startswith("{\n  ")
    assert found["files"]["empty"] == {"num_bytes": 0, "xxh3": xxhash.xxh3_64_hexdigest(b"")}


@pytest.mark.parametrize("name", ["../checkpoint-3/model.safetensors", "/etc/passwd"])
def test_manifest_of_a_path_that_leaves_is_neither_written_nor_read(
    tmp_path: Path, name: str
) -> None:
    folder = save(tmp_path, 4)
    good = manifest.read(folder)
    bad = replace(good, files={name: good.files["empty"]})

    with pytest.raises(CheckpointError, match="leaves"):
        manifest.write(folder, bad)
    assert manifest.read(folder) == good

    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"empty"', json.dumps(name)))
    with pytest.raises(CheckpointError, match="leaves"):
        manifest.read(folder)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting property name"),
        ("[]", "it is no mapping"),
        ("{}", "it has no step"),
        ("\xff", "codec"),
    ],
)
def test_manifest_that_is_none_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / MANIFEST).write_text(text, encoding="latin-1")

    with pytest.raises(CheckpointError, match=rf"cannot be read \(.*{why}"):
        manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("step", "4", "its step is '4'"),
        ("files", {}, "it lists no files"),
        ("files", {"a": {"num_bytes": 1}}, "its files lack 'xxh3'"),
        ("files", {"a": 1}, "its files lack"),
    ],
)
def test_manifest_with_a_wrong_field_is_refused(
    tmp_path: Path, field: str, value: object, why: str
) -> None:
    folder = save(tmp_path, 4)
    found = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**found, field: value, "newer": 1}))

    with pytest.raises(CheckpointError, match=why):
        manifest.read(folder)


def test_manifest_that_is_missing_says_that_the_save_was_not_finished(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no manifest\.json: it was not finished"):
        manifest.read(tmp_path)


WRITER = """
import os, pathlib, signal, sys
from sailplan.checkpoint import manifest
from tests.checkpoint.saved import manifest_of
folder, left = pathlib.Path(sys.argv[1]), int(sys.argv[2])
def mortal(function):
    def call(*arguments, **settings):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **settings)
    return call
saved = manifest_of(folder, 4)
for name in ("open", "fsync", "close", "replace"):
    setattr(os, name, mortal(getattr(os, name)))
pathlib.Path.replace = mortal(pathlib.Path.replace)
manifest.write(folder, saved)
"""


def test_manifest_after_a_kill_at_any_moment_is_whole_or_missing(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    save_files(folder, 4)
    expected = take_stock(folder)
    ends = []
    for calls in range(100):
        (folder / MANIFEST).unlink(missing_ok=True)
        command = [sys.executable, "-c", WRITER, str(folder), str(calls)]
        status = subprocess.run(command, timeout=60).returncode
        there = (folder / MANIFEST).exists()
        if there:
            assert manifest.read(folder).files == expected
        ends.append((status, there))
        if status == 0:
            break

    assert set(ends) == {(-signal.SIGKILL, False), (-signal.SIGKILL, True), (0, True)}
    assert ends == sorted(ends, key=lambda end: (end[1], end[0]))
    assert len(ends) > 20
    assert take_stock(folder) == expected  # what kills have left in the folder counts for nothing


STOCK = """
import sys
from pathlib import Path
from sailplan.checkpoint.manifest import take_stock
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
most = 0
def told(count):
    global most
    most = max(most, anonymous())
take_stock(Path(sys.argv[1]), threads=4, told=told)
print(most)
"""


@pytest.mark.parametrize(
    "gigabytes", [0.128, pytest.param(1.0, marks=pytest.mark.slow)], ids=["128MB", "1GB"]
)
def test_stock_of_large_files_takes_little_memory(tmp_path: Path, gigabytes: float) -> None:
    block = os.urandom(2**20)
    for name in "abcd":
        with (tmp_path / name).open("wb") as file:
            for _ in range(int(gigabytes * 1000 / 4)):
                file.write(block)

    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(tmp_path)], check=True, capture_output=True, text=True
    )

    assert int(done.stdout) < 64 * 2**20
