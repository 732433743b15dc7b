"""Loads raw rows, from the Hub or from files, and holds a part of them out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from sailplan.data import local
from sailplan.errors import DataError, RunFileError

if TYPE_CHECKING:
    from sailplan.run.config import Run

Splits = Mapping[str, datasets.Dataset]

_JSON_CHUNK_BYTES = 10 << 20
"""How much of a JSON Lines file `datasets` reads at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Raw rows: images are stored paths or bytes, never decoded."""

    train: datasets.Dataset
    """The rows to train on."""
    eval: datasets.Dataset | None
    """The rows held out, where there are any."""
    folder: Path | None
    """The folder that relative image paths belong to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """What `load_dataset` is asked for, under its own names."""

    path: str
    name: str | None = None
    data_dir: str | None = None
    data_files: Any = None
    split: str = "train"
    columns: list[str] | None = None


def load_rows(run: Run) -> Rows:
    """Loads the training rows and the held-out ones.

    `dataset_name` is a file or folder where there is one, else a name on the Hub. Held out are
    `eval_size` rows of the training split, drawn by `seed`, or else `dataset_test_split`.

    Raises:
        RunFileError: No dataset is named, or the options contradict each other.
        DataError: The data is missing, empty, malformed, or lacks a split that was asked for.
    """
    source = _source(run)
    splits, folder = _load(source)
    train = splits.get(source.split)
    if train is None:
        raise _no_split(source.path, source.split, splits)
    if not len(train):
        raise DataError(f"{source.path} has no rows in split {source.split!r}")
    held_out = _held_out(run, len(train))
    evaluation: datasets.Dataset | None
    if held_out is None:
        evaluation = _test_split(run, splits, source.path)
    else:
        evaluation = train.select(np.flatnonzero(held_out))
        train = train.select(np.flatnonzero(~held_out))
    if evaluation is None and run.get("eval_strategy") not in (None, "no"):
        raise RunFileError(
            f"eval_strategy {run.get('eval_strategy')} without rows to evaluate on",
            todo="set eval_size, or a dataset_test_split that exists",
        )
    return Rows(
        train=_undecoded(train, source.columns),
        eval=None if evaluation is None else _undecoded(evaluation, source.columns),
        folder=folder,
    )


def _source(run: Run) -> _Source:
    if run.get("dataset_streaming") or run.get("streaming"):
        raise RunFileError("streaming is not supported yet", todo="remove dataset_streaming")
    mixture = run.get("datasets")
    if mixture:
        if len(mixture) > 1:
            raise RunFileError(
                f"datasets with {len(mixture)} entries: mixtures are not supported yet",
                allowed="one entry",
            )
        entry = dict(mixture[0] if isinstance(mixture[0], Mapping) else vars(mixture[0]))
        entry.pop("fraction", None)  # a share of one dataset is the whole of it
        return _Source(**entry)
    if not run.get("dataset_name"):
        raise RunFileError("no dataset", todo="set dataset_name to a file, a folder or a Hub name")
    return _Source(
        path=run.get("dataset_name"),
        name=run.get("dataset_config"),
        split=run.get("dataset_train_split"),
    )


def _load(source: _Source) -> tuple[Splits, Path | None]:
    """Returns all splits, and the folder that image paths belong to."""
    path = Path(source.path).expanduser()
    if source.data_files is not None:
        first = source.data_files
        while not isinstance(first, str):
            first = next(iter(first.values() if isinstance(first, Mapping) else first))
        files = [Path(first)] if Path(first).is_file() else []
        return _read(source, source.path, files, data_files=source.data_files), Path(first).parent
    if path.is_file():
        return _load_file(source, path), path.parent
    if path.is_dir():
        return _load_folder(source, path), path
    if local.looks_local(source.path):
        raise DataError(f"there is no {source.path}", todo="check dataset_name")
    cache = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=source.path, repo_type="dataset")
    return _read(source, source.path, []), cache


def _load_file(source: _Source, path: Path) -> Splits:
    if local.builder(path) is None:
        raise DataError(f"{path} is no data file", allowed=", ".join(local.BUILDERS))
    return _read_files(source, {"train": [path]})


def _load_folder(source: _Source, folder: Path) -> Splits:
    files = local.data_files(folder)
    if local.is_saved_dataset(folder):
        with _quiet(), _one_line_errors(str(folder), files):
            saved = datasets.load_from_disk(str(folder))
        return saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    if files and source.name is None and not local.has_own_layout(folder):
        return _read_files(source, local.by_split(folder, files))
    return _read(source, str(folder), files)


def _read_files(source: _Source, splits: Mapping[str, list[Path]]) -> Splits:
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
        # Only an empty cell is empty: pandas would take the words NA, None and null for it too.
        options |= {"keep_default_na": False, "na_values": [""]}
        options["sep"] = "\t" if ".tsv" in files[0].suffixes else ","
    return _read(source, kind, files, **options)


def _read(source: _Source, path: str, files: list[Path], **options: Any) -> Splits:
    for file in files:
        local.check(file)
    with _quiet(), _one_line_errors(source.path, files):
        options |= {"name": source.name, "data_dir": source.data_dir}
        largest_bytes = max((file.stat().st_size for file in files), default=0)
        splits: Splits
        try:
            splits = datasets.load_dataset(path, **options)
        except datasets.exceptions.DatasetGenerationError:
            if path != "json" or largest_bytes < _JSON_CHUNK_BYTES:
                raise
            # The first chunk settles the columns, and a later one has others: images may begin
            # after thousands of text-only rows. All rows at once take six times the file in memory.
            splits = datasets.load_dataset(path, chunksize=largest_bytes + 1, **options)
    return splits


@contextmanager
def _one_line_errors(name: str, files: list[Path]) -> Iterator[None]:
    """Turns whatever loading raises into a DataError: its libraries have no class in common."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ConnectionError):
            raise DataError(
                f"dataset {name!r} is no file or folder here, and the Hub does not answer: {error}",
                todo="check the name, or download it where there is a network",
            ) from error
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


def _held_out(run: Run, num_rows: int) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """Returns which of the rows are held out, by `eval_size`; None where it is not set."""
    option = "test_split_size" if run.get("datasets") else "eval_size"
    size = run.get(option)
    if size is None:
        return None
    if option == "eval_size" and run.is_set("dataset_test_split"):
        raise RunFileError("eval_size and dataset_test_split both name the held-out rows")
    count = round(size * num_rows) if size < 1 else int(size)
    if not 0 < count < num_rows:
        raise RunFileError(
            f"{option} {size:g} of {num_rows} rows",
            allowed=f"a count from 1 to {num_rows - 1}, or a fraction below 1 of a row or more",
        )
    held_out = np.zeros(num_rows, dtype=np.bool_)
    held_out[np.random.default_rng(run.get("seed")).permutation(num_rows)[:count]] = True
    return held_out


def _test_split(run: Run, splits: Splits, path: str) -> datasets.Dataset | None:
    name = run.get("dataset_test_split")
    if name in splits and len(splits[name]):
        return splits[name]
    if run.is_set("dataset_test_split") and name is not None:
        raise _no_split(path, name, splits)
    return None


def _no_split(path: str, name: str, splits: Splits) -> DataError:
    there = ", ".join(f"{split} ({len(rows)} rows)" for split, rows in splits.items())
    return DataError(f"{path} has no rows in a split {name!r}", allowed=there or "no splits there")


def _undecoded(rows: datasets.Dataset, columns: list[str] | None) -> datasets.Dataset:
    """Returns the rows with every image, in lists and structures too, as its path or bytes.

    `cast_column` would do for plain columns, but rewrites the whole table for lists of images.
    Whether images decode is no part of the stored table, so changing the features is enough.
    """
    rows = rows.select_columns(columns) if columns else rows.with_format(None)
    for name, feature in list(rows.info.features.items()):
        rows.info.features[name] = _without_decoding(feature)
    return rows


def _without_decoding(feature: Any) -> Any:
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, dict):
        return {name: _without_decoding(inner) for name, inner in feature.items()}
    if isinstance(feature, datasets.List):
        return datasets.List(_without_decoding(feature.feature), length=feature.length)
    if isinstance(feature, datasets.LargeList):
        return datasets.LargeList(_without_decoding(feature.feature))
    return feature
