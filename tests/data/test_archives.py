"""Zip and tar archives are read in place, and broken or hostile ones are refused in one line."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sailplan.data import archives
from sailplan.data.images import ImageOpener
from sailplan.data.sample import ImageReference
from sailplan.data.sources import load_rows
from sailplan.errors import DataError, RunFileError
from sailplan.run.config import Run

RunOn = Callable[..., Run]
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def png(colour: str = "red") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(content, "PNG")
    return content.getvalue()


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


PACK = {"zip": zipped, "tar": tarred}


def at(path: str) -> ImageReference:
    return ImageReference(path=path, bytes=None)


@pytest.mark.parametrize("kind", PACK)
def test_path_may_lead_into_an_archive(tmp_path: Path, kind: str) -> None:
    PACK[kind](tmp_path / f"images.{kind}", {"a.png": png(), "b/c.png": png("blue")})

    opener = pickle.loads(pickle.dumps(ImageOpener(root=tmp_path)))

    assert opener.size(at(f"images.{kind}/a.png")) == (6, 4)
    assert opener.open(at(f"images.{kind}/b/c.png")).getpixel((0, 0)) == (0, 0, 255)
    inner = ImageOpener(root=tmp_path / f"images.{kind}" / "b")
    assert inner.open(at("c.png")).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("path", ["../a.png", "../../outside.png", "/etc/passwd"])
def test_path_may_not_leave_the_archive(tmp_path: Path, kind: str, path: str) -> None:
    PACK[kind](tmp_path / f"images.{kind}", {"a.png": png(), "b/c.png": png()})
    (tmp_path / "outside.png").write_bytes(png())
    opener = ImageOpener(root=tmp_path / f"images.{kind}" / "b")
    with pytest.raises(DataError, match="lies outside image_root"):
        opener.open(at(path))


@pytest.mark.parametrize("kind", PACK)
def test_member_that_is_not_there_is_refused(tmp_path: Path, kind: str) -> None:
    PACK[kind](tmp_path / f"images.{kind}", {"a.png": png()})
    with pytest.raises(DataError, match=rf"images\.{kind} holds no b\.png"):
        ImageOpener(root=tmp_path).open(at(f"images.{kind}/b.png"))


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_archive_that_is_cut_off_is_refused(tmp_path: Path, kind: str, kept: float) -> None:
    files = {f"{n}.png": png() + bytes(9000) for n in range(3)}
    path = PACK[kind](tmp_path / f"images.{kind}", files)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=rf"images\.{kind}.*cut off"):
        ImageOpener(root=tmp_path).open(at(f"images.{kind}/2.png"))


def test_locked_member_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "images.zip", {"a.png": png()})
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag of encryption, of the member and of its entry in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="is locked with a password; unlock the archive"):
        ImageOpener(root=tmp_path).open(at("images.zip/a.png"))


def test_member_of_absurd_size_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped(tmp_path / "images.zip", {"a.png": bytes(5000)})
    monkeypatch.setattr(archives, "MEMBER_LIMIT_BYTES", 4999)
    with pytest.raises(DataError, match="has 5000 bytes; allowed: at most 4999"):
        ImageOpener(root=tmp_path).open(at("images.zip/a.png"))


def _colours(opener: ImageOpener, kind: str) -> list[tuple[int, ...]]:
    names = [f"images.{kind}/{n}.png" for n in range(40)]
    return [opener.open(at(name)).getpixel((0, 0)) for name in names]


@pytest.mark.parametrize("kind", PACK)
def test_forked_workers_do_not_disturb_one_another(tmp_path: Path, kind: str) -> None:
    shades = [(n, 2 * n, 255 - n) for n in range(40)]
    files = {f"{n}.png": png(f"rgb{shade}") for n, shade in enumerate(shades)}
    PACK[kind](tmp_path / f"images.{kind}", files)
    opener = ImageOpener(root=tmp_path)
    assert _colours(opener, kind) == shades  # opened before the fork

    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.starmap(_colours, [(opener, kind)] * 9)

    assert found == [shades] * 9


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty zip": (lambda f: zipped(f / "a.zip", {}), "holds no rows"),
    "pictures alone without words": (
        lambda f: zipped(f / "a.zip", {"a.exe": b"MZ"}),
        "holds a.exe, which is no part of a sample; allowed: .json, a text or an image",
    ),
    "pickle in a sample": (
        lambda f: tarred(f / "a.tar", {"1.json": b"{}", "1.pth": b"\x80"}),
        "holds 1.pth, which is no part of a sample",
    ),
    "two tables": (
        lambda f: zipped(f / "a.zip", {"a.jsonl": b"{}", "b.csv": b"a"}),
        "holds several data files: a.jsonl, b.csv; allowed: one",
    ),
    "broken json": (
        lambda f: tarred(f / "a.tar", {"1.json": b"{"}),
        "a.tar/1.json is no JSON",
    ),
    "json that is no row": (
        lambda f: tarred(f / "a.tar", {"1.json": b"[1]"}),
        "a.tar/1.json holds a list; allowed: an object",
    ),
    "images twice": (
        lambda f: tarred(f / "a.tar", {"1.json": b'{"image": "x.png"}', "1.png": png()}),
        "sample 1 has images beside it and in its json",
    ),
    "page saved as the table": (
        lambda f: zipped(f / "a.zip", {"a.jsonl": b"<!DOCTYPE html><title>Sign in</title>"}),
        "a.zip/a.jsonl is a web page, not data",
    ),
    "page saved as the archive": (
        lambda f: (f / "a.zip").write_bytes(b"<!DOCTYPE html>") and f / "a.zip",
        "a.zip is a web page, not data",
    ),
    "no archive": (
        lambda f: (f / "a.tar").write_bytes(b"not a tar file" * 99) and f / "a.tar",
        "a.tar is no tar archive, or cut off",
    ),
    "pattern without a match": (lambda f: f / "*.jsonl", r"no file matches .*\*\.jsonl"),
}


@pytest.mark.parametrize("case", BAD)
def test_archive_without_rows_is_refused(tmp_path: Path, run_on: RunOn, case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(DataError, match=message) as caught:
        load_rows(run_on(make(tmp_path)))
    assert "\n" not in str(caught.value)


def test_archives_and_other_files_are_not_read_together(tmp_path: Path, run_on: RunOn) -> None:
    zipped(tmp_path / "rows.zip", {"rows.jsonl": json.dumps(CHAT).encode()})
    (tmp_path / "rows.jsonl").write_text(json.dumps(CHAT) + "\n")
    with pytest.raises(DataError, match="holds archives and other files"):
        load_rows(run_on(tmp_path / "rows.*"))


def test_folder_of_archives_has_their_splits(tmp_path: Path, run_on: RunOn) -> None:
    for split, count in (("train", 3), ("test", 2)):
        files = {f"{n}.json": json.dumps(CHAT).encode() for n in range(count)}
        tarred(tmp_path / f"{split}-0.tar", files)
    rows = load_rows(run_on(tmp_path))
    assert rows.eval is not None
    assert (len(rows.train), len(rows.eval)) == (3, 2)


def test_captions_of_a_webdataset_are_columns(tmp_path: Path, run_on: RunOn) -> None:
    tarred(tmp_path / "a.tar", {"1.png": png(), "1.txt": b"A boat.", "1.cls": b"3"})
    [row] = load_rows(run_on(tmp_path / "a.tar")).train
    assert row == {"images": ["a.tar/1.png"], "txt": "A boat.", "cls": "3"}


def test_image_root_that_is_neither_folder_nor_archive_is_refused(
    tmp_path: Path, run_on: RunOn
) -> None:
    from sailplan.data.local import image_root

    with pytest.raises(RunFileError, match="is no folder and no zip or tar file"):
        image_root(run_on(tmp_path, "--image_root", str(tmp_path / "x.zip")))
