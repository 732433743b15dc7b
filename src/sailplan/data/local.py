"""Finds the data files behind a local path, and says what is wrong with one that does not load."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from sailplan.data import foreign
from sailplan.errors import DataError

BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
"""The builder of `datasets` for each suffix of a data file."""

_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

# The words by which `datasets` tells splits from file and folder names.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def looks_local(name: str) -> bool:
    """Whether a dataset name can only be a path: a Hub name is `name` or `owner/name`."""
    return (
        name.startswith(("/", "./", "../", "~"))
        or name in (".", "..")
        or name.count("/") > 1
        or builder(Path(name)) is not None
    )


def builder(path: Path) -> str | None:
    """Returns the builder of `datasets` for a file, by its name, or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return BUILDERS.get(suffixes[-1]) if suffixes else None


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def data_files(folder: Path) -> list[Path]:
    """Returns the data files under a folder, hidden ones left out, in the order of their names."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if builder(path) is not None
        and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    ]


def beside_images(folder: Path, files: list[Path]) -> bool:
    """Whether a folder holds data files and the images that they name.

    `datasets` takes a folder for what most of its files are, so that it would see images and
    nothing else. Folders with `metadata` files are its own image folders, which it reads right.
    """
    if any(path.name.startswith("metadata.") for path in files):
        return False
    return any(path.suffix.lower() in _IMAGES for path in folder.rglob("*"))


def by_split(folder: Path, files: list[Path]) -> dict[str, list[str]]:
    """Groups data files by the split that their names tell; without such a word, `train`."""
    splits: dict[str, list[str]] = {}
    for path in files:
        words = re.split(r"[^a-z]+", path.relative_to(folder).as_posix().lower())
        found = [name for name, known in _SPLITS.items() if any(word in known for word in words)]
        splits.setdefault(found[-1] if found else "train", []).append(str(path))
    return splits


def check(path: Path) -> None:
    """Refuses a file that is not what its name says, from its first bytes.

    Raises:
        DataError: It is unreadable, empty, a web page or a Git-LFS pointer.
    """
    try:
        with path.open("rb") as file:
            head = file.read(foreign.HEAD_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    found = foreign.describe(head)
    if found is not None:
        raise DataError(f"{path} {found[0]}", todo=found[1])


def explain(error: BaseException, files: list[Path]) -> str:
    """Says in one clause why files did not load: the place in malformed JSON, else the root cause.

    Args:
        error: What `datasets` raised.
        files: The data files it read.
    """
    for path in files:
        if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
            place = _malformed_json(path)
            if place is not None:
                return f"{path}: {place}"
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _malformed_json(path: Path) -> str | None:
    """Returns where a JSON or JSON Lines file is malformed; it is read again, line by line."""
    try:
        if _is_one_document(path):
            json.loads(path.read_text(encoding="utf-8-sig"))
            return None
        for number, line in _lines(path):
            try:
                json.loads(line)
            except json.JSONDecodeError as error:
                return f"line {number}, column {error.colno}: {error.msg}"
    except json.JSONDecodeError as error:
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    except UnicodeDecodeError as error:
        return f"byte {error.start}: not UTF-8"
    return None


def _is_one_document(path: Path) -> bool:
    """Whether a file is one JSON array or an object over several lines, not one value a line."""
    for _, line in _lines(path):
        try:
            json.loads(line)
        except json.JSONDecodeError:
            return path.suffix.lower() == ".json"
        return line.startswith("[")
    return False


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line
