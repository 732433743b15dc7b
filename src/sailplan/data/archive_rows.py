"""Turns an archive into rows: those of a data file in it, or WebDataset's samples."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import xxhash

from sailplan.data import archives, foreign, local
from sailplan.data.archives import Inside
from sailplan.errors import DataError
from sailplan.files import write_atomically

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif"),
)
"""What of a WebDataset's sample is an image."""

_TEXT_SUFFIXES = (".txt", ".text", ".caption", ".cls")


def has_images(archive: Path) -> bool:
    """Whether an archive holds images: one of text alone has no column for them.

    Raises:
        DataError: The archive is broken.
    """
    return any(
        name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)
        for name in archives.members(archive)
    )


def data_file(archive: Path, *, with_images: bool) -> tuple[Path, Path]:
    """Returns a file with an archive's rows, kept in the cache of `datasets`, and its images' root.

    An archive with one data file (json, csv, parquet, …) holds its rows; a path in them is relative
    to that file's folder in the archive. Else it is read as a WebDataset: files of the same name up
    to the first dot are a sample, of which `.json` is the row and images become its `images`, in
    the order of their names; a text becomes the column of its suffix.

    Args:
        archive: The zip or tar file.
        with_images: Whether samples of it, or of another shard, have images beside them.

    Raises:
        DataError: The archive is broken, empty, or holds neither.
    """
    names = [name for name in archives.members(archive) if not is_hidden(name)]
    tables = [name for name in names if is_table(name)]
    if len(tables) > 1:
        some = ", ".join(tables[:5])
        raise DataError(f"{archive} holds several data files: {some}", allowed="one")
    if tables:
        content = archives.read(Inside(archive, tables[0]))
        wrong = foreign.describe(content[: foreign.HEAD_BYTES])
        if wrong:
            raise DataError(f"{archive}/{tables[0]} {wrong[0]}", todo=wrong[1])
        name = posixpath.basename(tables[0])
        return kept(archive, name, content), archive / posixpath.dirname(tables[0])
    samples = _samples(archive, names)
    rows = _rows(archive, samples, with_images)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    content = "".join(lines).encode()
    if not content:
        raise DataError(f"{archive} holds no rows", allowed="a data file, or WebDataset's samples")
    return kept(archive, "samples.jsonl", content), archive.parent


def is_hidden(name: str) -> bool:
    """Whether a member is what an operating system left there."""
    return any(part.startswith((".", "__")) for part in name.split("/"))


def is_table(name: str) -> bool:
    """Whether a member is a table of rows; `.json` and `.txt` may be one sample's alone."""
    kind = local.builder(Path(name))
    single = Path(name).suffix.lower() in (".json", ".txt")
    return (kind is not None and not single) or posixpath.basename(name) in _LONE_TABLES


_LONE_TABLES = ("train.json", "data.json", "dataset.json", "rows.json", "metadata.json")
"""JSON files of an archive that hold all of its rows."""


def _samples(archive: Path, names: list[str]) -> dict[str, list[str]]:
    """Returns the members of each sample, by what their names have in common."""
    samples: dict[str, list[str]] = {}
    for name in names:
        samples.setdefault(sample_key(archive, name), []).append(name)
    return samples


def sample_key(archive: Path, name: str) -> str:
    """Returns what the members of one sample have in common: their name up to the first dot.

    Raises:
        DataError: The member is no part of a sample.
    """
    folder, base = posixpath.split(name)
    key, dot, _ = base.partition(".")
    suffix = posixpath.splitext(base)[1].lower()
    if not dot or suffix not in (".json", *_TEXT_SUFFIXES, *IMAGE_SUFFIXES):
        raise DataError(
            f"{archive} holds {name}, which is no part of a sample",
            allowed=".json, a text or an image beside it, or one data file",
        )
    return posixpath.join(folder, key)


def _rows(
    archive: Path, samples: Mapping[str, list[str]], with_images: bool
) -> Iterator[dict[str, Any]]:
    for key, names in samples.items():
        row, images = sample_row(archive, names, lambda name: archives.read(Inside(archive, name)))
        paths = [f"{archive.name}/{name}" for name in images]
        yield with_its_images(archive, key, row, paths, with_images)


def sample_row(
    archive: Path, names: Sequence[str], read: Callable[[str], bytes]
) -> tuple[dict[str, Any], list[str]]:
    """Returns the row of a WebDataset's sample, and which of its members are images, in order.

    Args:
        archive: The archive, for errors.
        names: The sample's members.
        read: Reads one of them.

    Raises:
        DataError: A member is broken.
    """
    row: dict[str, Any] = {}
    images = []
    for name in sorted(names):
        suffix = posixpath.splitext(name)[1].lower()
        if suffix in IMAGE_SUFFIXES:
            images.append(name)
        elif suffix == ".json":
            row |= _json(archive, name, read(name))
        else:
            row[suffix[1:]] = _text(archive, name, read(name))
    return row, images


def with_its_images(
    archive: Path, key: str, row: dict[str, Any], images: list[Any], has_column: bool
) -> dict[str, Any]:
    """Returns a sample's row with the images beside it, where rows have a column of them.

    Raises:
        DataError: It names images of its own as well.
    """
    if not {"image", "images"} & row.keys():
        return row | ({"images": images} if has_column else {})
    if images:
        raise DataError(
            f"{archive}: sample {key} has images beside it and in its json",
            todo="leave image and images out of the json",
        )
    return row


def _json(archive: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        row = json.loads(content)
    except ValueError as error:
        raise DataError(f"{archive}/{name} is no JSON: {error}", todo="get it again") from None
    if not isinstance(row, dict):
        raise DataError(f"{archive}/{name} holds a {type(row).__name__}", allowed="an object")
    return row


def _text(archive: Path, name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise DataError(f"{archive}/{name} is not UTF-8", todo="save it as UTF-8") from None


def kept(archive: Path, name: str, content: bytes) -> Path:
    """Writes what was read from an archive where `datasets` can read it, once for each content."""
    digest = xxhash.xxh3_128_hexdigest(content)
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "archives" / f"{archive.name}-{digest}"
    path = folder / name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return path
