"""Loads every split of a dataset, from the Hub, a folder or files, with errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pandas as pd  # type: ignore[import-untyped]  # it ships no types

from sailplan.data import archives, local
from sailplan.data.archive_rows import data_file, has_images
from sailplan.data.archive_stream import ArchiveStream, first_samples, is_of_samples
from sailplan.data.hub import hub_splits
from sailplan.data.streaming.parts import finer
from sailplan.errors import DataError
from sailplan.hub import errors as hub_errors
from sailplan.hub.repository import MAIN, Repository
from sailplan.run.repositories import BUILDERS

Splits = Mapping[str, datasets.Dataset]

_JSON_CHUNK_BYTES = 10 << 20
"""How much of a JSON Lines file `datasets` reads at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What `load_dataset` is asked for, under its own names."""

    path: str
    """A file, a folder, a Hub name, or a builder's name where there are `data_files`."""
    name: str | None = None
    """The configuration."""
    revision: str | None = None
    """Of a Hub name the branch, tag or commit."""
    data_dir: str | None = None
    """A folder within the dataset."""
    data_files: Any = None
    """Paths, in any of the shapes that `load_dataset` takes."""
    split: str = "train"
    """The split to train on."""
    columns: list[str] | None = None
    """The columns to keep; all where not given."""
    fraction: float | None = None
    """The share of the mixture that its rows are to have; see `mixture.take_fractions`."""
    streaming: bool = False
    """Whether the rows are opened and not read."""


def load_splits(source: Source, *, streaming: bool = False) -> tuple[Splits, Path]:
    """Returns all splits, and the folder that image paths belong to.

    Args:
        source: What is asked for.
        streaming: Open the rows and read none. A split then is a `datasets.IterableDataset` or an
            `ArchiveStream`, its columns known, or a dataset that lies on disk.
    """
    splits, folder = _load_splits(replace(source, streaming=streaming))
    if not streaming:
        return splits, folder
    with _quiet(), _one_line_errors(source.path, []):
        return {name: _opened(rows) for name, rows in splits.items()}, folder


def _opened(rows: Any) -> Any:
    """Returns rows whose columns are known, a stream's in shards that are small enough."""
    if not isinstance(rows, datasets.IterableDataset):  # it lies on disk, or is of archives
        return rows
    rows = finer(rows)
    return rows if rows.features is not None else rows._resolve_features()


def _load_splits(source: Source) -> tuple[Splits, Path]:
    path = Path(source.path).expanduser()
    if source.data_files is not None:
        return _load_named_files(source, path)
    if path.is_dir() and source.data_dir is not None:
        path, source = path / source.data_dir, replace(source, data_dir=None)
        if not path.is_dir():
            raise DataError(f"there is no folder {path}", todo="check data_dir")
    local.glance(str(path) if path.exists() else source.path, whole=not source.streaming)
    if local.is_pattern(source.path):
        folder, files = local.matching(source.path)
        return _load_files(source, local.by_split(folder, files), folder)
    if path.is_file():
        return _load_files(source, {"train": [path]}, path.parent)
    if path.is_dir() and not local.data_files(path) and local.archives_in(path):
        return _load_files(source, local.by_split(path, local.archives_in(path)), path)
    if path.is_dir():
        return _load_folder(source, path), path
    if source.path in BUILDERS:
        return _read(source, source.path, []), _own_folder(source)
    return _load_hub(source), _own_folder(source)


def _load_hub(source: Source) -> Splits:
    with _quiet(), _one_line_errors(source.path, []):
        if source.streaming:
            return _load(  # the hub's own files, as they are read
                source.path,
                source,
                {"revision": source.revision, "data_files": source.data_files},
            )
        return hub_splits(
            Repository(kind="dataset", name=source.path, revision=source.revision or MAIN),
            name=source.name,
            data_dir=source.data_dir,
            data_files=source.data_files,
        )


def _load_named_files(source: Source, path: Path) -> tuple[Splits, Path]:
    if not path.exists() and source.path not in BUILDERS:
        return _load_hub(source), _own_folder(source)
    first = source.data_files
    while not isinstance(first, str):
        first = next(iter(first.values() if isinstance(first, Mapping) else first))
    folder = path / (source.data_dir or "") if path.is_dir() else _own_folder(source)
    file = folder / first
    files = [file] if file.is_file() else []
    return _read(source, source.path, files, data_files=source.data_files), file.parent


def _own_folder(source: Source) -> Path:
    """Returns the folder of what is no path: a builder's is in `data_dir`, the Hub's in a cache."""
    if source.path in BUILDERS:
        return Path(source.data_dir or "").expanduser()
    return Repository(kind="dataset", name=source.path).folder


def _load_folder(source: Source, folder: Path) -> Splits:
    files = local.data_files(folder)
    if local.is_saved_dataset(folder):
        with _quiet(), _one_line_errors(str(folder), files):
            saved = datasets.load_from_disk(str(folder))
        return saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    if files and source.name is None and not local.has_own_layout(folder):
        return _read_files(source, local.by_split(folder, files))
    return _read(source, str(folder), files)


def _load_files(
    source: Source, splits: Mapping[str, list[Path]], folder: Path
) -> tuple[Splits, Path]:
    """Reads data files, or archives of rows, and returns the folder of their images beside."""
    files = [file for group in splits.values() for file in group]
    packed = [file.suffix.lower() in archives.SUFFIXES for file in files]
    if not any(packed):
        return _read_files(source, splits), folder
    if not all(packed):
        raise DataError(f"{source.path} holds archives and other files", allowed="one or the other")
    if source.streaming and is_of_samples(files):
        return {name: _archive_stream(source, group) for name, group in splits.items()}, folder
    with_images = any(has_images(file) for file in files)
    read = {file: data_file(file, with_images=with_images) for file in files}
    roots = {root for _, root in read.values()}
    if len(roots) > 1:
        raise DataError(
            f"{source.path}: the archives have data files with images of their own",
            todo="list each under datasets",
        )
    rows = {name: [read[file][0] for file in group] for name, group in splits.items()}
    return _read_files(source, rows), roots.pop()


def _archive_stream(source: Source, files: list[Path]) -> Any:
    """Opens tar shards; the first samples, read as any JSON is, tell the columns."""
    first, with_images = first_samples(files[0])
    columns = _read_files(replace(source, streaming=False), {"head": [first]})["head"].features
    return ArchiveStream.of(files, columns, with_images=with_images)


def _read_files(source: Source, splits: Mapping[str, list[Path]]) -> Splits:
    """Reads data files; `datasets` would take a folder of json and images for one of images."""
    files = [file for group in splits.values() for file in group]
    kinds = {local.builder(file) for file in files}
    if len(kinds) > 1:
        some = ", ".join(file.name for file in files[:5])
        raise DataError(
            f"{source.path} holds data files of several kinds: {some}",
            todo="name one of them as dataset_name",
        )
    kind = str(kinds.pop())
    options: dict[str, Any] = {
        "data_files": {split: list(map(str, group)) for split, group in splits.items()}
    }
    if kind == "csv":
        options["sep"] = "\t" if ".tsv" in files[0].suffixes else ","
    return _read(source, kind, files, **options)


def _read(source: Source, path: str, files: list[Path], **options: Any) -> Splits:
    for file in files:
        local.check(file, whole=not source.streaming)
    with _quiet(), _one_line_errors(source.path, files):
        if path == "json":
            if any(file.suffix.lower() == ".json" for file in files):
                source = replace(source, streaming=False)  # one array, which is read whole
            return _load_json(files, source, options)
        if path == "csv":
            return _load_csv(files, source, options)
        return _load(path, source, options)


def _load(path: str, source: Source, options: Mapping[str, Any]) -> Splits:
    given = {"name": source.name, "data_dir": source.data_dir, "streaming": source.streaming}
    splits: Splits = datasets.load_dataset(path, **{**given, **options})
    return splits


def _load_json(files: list[Path], source: Source, options: dict[str, Any]) -> Splits:
    """Reads JSON where `datasets` alone would fail, or change what is written."""
    try:
        splits = _load("json", source, options)
    except datasets.exceptions.DatasetGenerationError:
        largest_bytes = max((file.stat().st_size for file in files), default=0)
        if largest_bytes < _JSON_CHUNK_BYTES:
            raise
        # The first chunk settles the columns, and a later one has others: images may begin after
        # thousands of text-only rows. All rows at once take six times the file in memory.
        options["chunksize"] = largest_bytes + 1
        splits = _load("json", source, options)
    # Arrow takes a column of nothing but dates for timestamps, and the answer 2024-05-01 would come
    # out as 2024-05-01 00:00:00. JSON has no dates: such a column is read as any JSON value is.
    first = next(iter(splits.values()))
    features = first._resolve_features().features if source.streaming else first.features
    literal = changed(features, _without_timestamps)
    if literal == features:
        return splits
    return _load("json", source, {**options, "features": datasets.Features(literal)})


def _load_csv(files: list[Path], source: Source, options: dict[str, Any]) -> Splits:
    """Reads cells as the text that is written, and only empty ones as empty.

    pandas would guess: the price 12.50 becomes 12.5, the number 007 becomes 7, the word NA nothing.
    """
    sep = options.get("sep", ",")
    columns = pd.read_csv(files[0], sep=sep, nrows=0).columns if files else []
    if len(columns):
        options["features"] = datasets.Features(
            {name: datasets.Value("string") for name in columns}
        )
    return _load("csv", source, {**options, "keep_default_na": False, "na_values": [""]})


def _without_timestamps(feature: Any) -> Any:
    is_value = isinstance(feature, datasets.Value)
    return datasets.Json() if is_value and feature.dtype.startswith("timestamp") else feature


def changed(feature: Any, change: Callable[[Any], Any]) -> Any:
    """Returns a feature, or all of a table's, with `change` made to each that holds no others."""
    if isinstance(feature, Mapping):
        return {name: changed(inner, change) for name, inner in feature.items()}
    if isinstance(feature, datasets.List):
        return datasets.List(changed(feature.feature, change), length=feature.length)
    if isinstance(feature, datasets.LargeList):
        return datasets.LargeList(changed(feature.feature, change))
    return change(feature)


@contextmanager
def _one_line_errors(name: str, files: list[Path]) -> Iterator[None]:
    """Turns whatever loading raises into a DataError: its libraries have no class in common."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        known = hub_errors.explain(error, Repository(kind="dataset", name=name))
        if known is not None and not files:
            raise known from error
        raise DataError(local.explain(error, name, files)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps `datasets` from repeating our errors, and its bars out of log files."""
    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
