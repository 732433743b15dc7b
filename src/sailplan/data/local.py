"""Finds the data files behind a local path, and says what is wrong with one that does not load."""

from __future__ import annotations

import codecs
import glob
import itertools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sailplan.data import archives, foreign
from sailplan.errors import DataError, RunFileError

if TYPE_CHECKING:
    from sailplan.run.config import Run

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

_TEXT_BUILDERS = ("json", "csv", "text")
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

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
        or name.endswith("/")
        or name in (".", "..")
        or name.count("/") > 1
        or is_pattern(name)
        or builder(Path(name)) is not None
        or Path(name).suffix.lower() in archives.SUFFIXES
    )


def is_pattern(name: str) -> bool:
    """Whether a name stands for all files that match it, and is not itself one's."""
    return any(letter in name for letter in "*?[") and not Path(name).expanduser().exists()


def matching(pattern: str) -> tuple[Path, list[Path]]:
    """Returns the files that a pattern matches, in the order of their names, and their folder.

    Raises:
        DataError: It matches none.
    """
    whole = Path(pattern).expanduser()
    fixed = Path(*itertools.takewhile(lambda part: not is_pattern(part), whole.parts))
    names = glob.glob(str(whole), recursive=True)  # noqa: PTH207  Path.glob takes no absolute one
    found = sorted(map(Path, names))
    files = [path for path in found if path.is_file()]
    if not files:
        raise DataError(f"no file matches {pattern}", todo="check the pattern")
    return fixed, files


def archives_in(folder: Path) -> list[Path]:
    """Returns the archives right in a folder, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in archives.SUFFIXES)


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


def has_own_layout(folder: Path) -> bool:
    """Whether `datasets` itself must read a folder: a card tells its files, or it is of images."""
    card = folder / "README.md"
    if card.is_file() and re.search(r"^configs:", card.read_text(encoding="utf-8"), re.MULTILINE):
        return True
    return any(next(folder.rglob(f"metadata{suffix}"), None) for suffix in BUILDERS)


def by_split(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Groups data files by the split that their names tell; without such a word, `train`."""
    splits: dict[str, list[Path]] = {}
    for path in files:
        words = re.split(r"[^a-z]+", path.relative_to(folder).as_posix().lower())
        found = [name for name, known in _SPLITS.items() if any(word in known for word in words)]
        splits.setdefault(found[-1] if found else "train", []).append(path)
    return splits


def glance(name: str, *, whole: bool = True) -> None:
    """Refuses what cannot be data, from names and first bytes alone; a Hub name passes.

    Args:
        name: What is named.
        whole: Whether archives are looked through for their members.

    Raises:
        DataError: It is a path without data behind it, or a file there is not what its name says.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not any(path.iterdir()):
            raise DataError(f"{name} is an empty folder", todo="check the path")
        for file in [] if is_saved_dataset(path) else data_files(path):
            _check_head(file)
    elif is_pattern(name):
        for file in matching(name)[1]:
            _glance_at_file(file, whole)
    elif path.is_file():
        _glance_at_file(path, whole)
    elif looks_local(name):
        raise DataError(f"there is no {name}", todo="check the path")


def _glance_at_file(path: Path, whole: bool) -> None:
    _check_head(path)
    if path.suffix.lower() in archives.SUFFIXES:
        if whole:
            archives.members(path)
    elif builder(path) is None:
        allowed = ", ".join((*BUILDERS, *archives.SUFFIXES))
        raise DataError(f"{path} is no data file", allowed=allowed)


def image_root(run: Run) -> Path | None:
    """Returns the folder or archive that the run file gives for images, None where it gives none.

    Raises:
        RunFileError: It is neither.
    """
    root = run.get("image_root")
    path = Path(root).expanduser().resolve() if root is not None else None
    if path is not None and not path.is_dir() and archives.split(path) is None:
        raise RunFileError(f"image_root {root} is no folder and no zip or tar file")
    return None if root is None else Path(root)


def check(path: Path, *, whole: bool = True) -> None:
    """Refuses a file that is not what its name says.

    Text is read through for its encoding, at some 500 MB a second: Arrow stores bytes that
    are no UTF-8 as they are, and it would be a row in the middle of a run that fails.

    Args:
        path: The file.
        whole: Whether it is read through.

    Raises:
        DataError: It is unreadable, empty, a web page, a Git-LFS pointer, or text but not UTF-8.
    """
    _check_head(path)
    if whole and builder(path) in _TEXT_BUILDERS and path.suffix.lower() not in _COMPRESSIONS:
        with path.open("rb") as file:
            _check_encoding(path, file)


def _check_head(path: Path) -> None:
    try:
        with path.open("rb") as file:
            found = foreign.describe(file.read(foreign.HEAD_BYTES))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if found is not None:
        raise DataError(f"{path} {found[0]}", todo=found[1])


def _check_encoding(path: Path, file: BinaryIO) -> None:
    decoder, lines = codecs.getincrementaldecoder("utf-8")(), 1
    while chunk := file.read(1 << 20):
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError as error:
            lines += chunk[: error.start].count(b"\n")
            raise DataError(
                f"{path} is not UTF-8 at line {lines}", todo="save it as UTF-8"
            ) from error
        lines += chunk.count(b"\n")


def explain(error: BaseException, name: str, files: list[Path]) -> str:
    """Says in one clause why data did not load: the place in malformed JSON, else the root cause.

    Args:
        error: What `datasets` raised.
        name: The dataset.
        files: The data files it read.
    """
    for path in files:
        if builder(path) == "json" and path.suffix.lower() not in _COMPRESSIONS:
            place = _malformed(path)
            if place is not None:
                return f"{path}, {place}"
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "corresponds to no data" in lines[0]:
        return f"{name} has no rows"
    return f"cannot load {name}: {lines[0]}{f' … {lines[-1]}' if len(lines) > 1 else ''}"


def _malformed(path: Path) -> str | None:
    """Returns where a JSON or JSON Lines file is malformed, reading it once more."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            is_array = file.read(1) == "["
            file.seek(0)
            if is_array:
                json.load(file)
                return None
            for number, line in enumerate(file, start=1):
                try:
                    if line.strip():
                        json.loads(line)
                except json.JSONDecodeError as error:
                    return f"line {number}, column {error.colno}: {error.msg}"
    except json.JSONDecodeError as error:
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    return None
