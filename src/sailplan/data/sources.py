"""Loads raw rows, from the Hub or from files, and holds a part of them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from sailplan.data.loading import Source, Splits, changed, load_splits
from sailplan.data.mixture import Entry, check_fractions, concatenate, take_fractions
from sailplan.data.streaming import (
    ENTRY_ROWS,
    Stream,
    check_streaming,
    held_out_rows,
    is_streaming,
)
from sailplan.data.streaming.parts import Part, Shards, Table
from sailplan.errors import DataError, RunFileError

if TYPE_CHECKING:
    from sailplan.run.config import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Raw rows: images are stored paths or bytes, never decoded."""

    train: datasets.Dataset | Stream
    """The rows to train on; of a run that streams, in their order."""
    eval: datasets.Dataset | None
    """The rows held out, where there are any."""
    entries: tuple[Entry, ...]
    """Where the rows are from, in the order of the rows before any were held out."""
    numbers: Mapping[str, Sequence[int]]
    """For `train` and `eval`, each row's number before any were held out."""


def load_rows(run: Run) -> Rows:
    """Loads the training rows and the held-out ones.

    `dataset_name` is a file or folder where there is one, else a name on the Hub; `datasets` are
    any number of these, whose rows follow one another. Held out are `eval_size` (in TRL's words
    `test_split_size`) rows of them, drawn by `seed`, or else `dataset_test_split`.

    Raises:
        RunFileError: No dataset is named, or the options contradict each other.
        DataError: The data is missing, empty, malformed, lacks a split or a column that was asked
            for, or does not fit together.
    """
    sources = sources_of(run)
    names = [
        _name(number, source) if run.get("datasets") else ""
        for number, source in enumerate(sources, start=1)
    ]
    if is_streaming(run):
        return _stream_rows(run, sources, names)
    loaded = [load_splits(source) for source in sources]
    parts = take_fractions(
        [
            _undecoded(_columns(source, _split(source, splits)))
            for source, (splits, _) in zip(sources, loaded, strict=True)
        ],
        [source.fraction for source in sources],
    )
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    train = concatenate(parts, names)
    held_out = _held_out(run, len(train))
    evaluation: datasets.Dataset | None
    numbers: dict[str, Sequence[int]] = {"train": range(len(train))}
    if held_out is None:
        evaluation = _test_split(run, sources[0], loaded[0][0])
        numbers["eval"] = range(len(evaluation or ()))
    else:
        numbers = {
            "train": np.flatnonzero(~held_out).tolist(),
            "eval": np.flatnonzero(held_out).tolist(),
        }
        evaluation, train = train.select(numbers["eval"]), train.select(numbers["train"])
    if evaluation is None and run.get("eval_strategy") not in (None, "no"):
        raise RunFileError(
            f"eval_strategy {run.get('eval_strategy')} without rows to evaluate on",
            todo="set eval_size, or a dataset_test_split that exists",
        )
    entries = (
        Entry(name=name, folder=folder, columns=tuple(part.column_names), start=start)
        for name, (_, folder), part, start in zip(names, loaded, parts, starts[:-1], strict=True)
    )
    return Rows(train=train, eval=evaluation, entries=tuple(entries), numbers=numbers)


def sources_of(run: Run) -> list[Source]:
    """Returns what a run asks of `load_dataset`: its one dataset, or each entry of `datasets`.

    Raises:
        RunFileError: No dataset is named.
    """
    if run.get("datasets"):
        return [
            Source(**(entry if isinstance(entry, Mapping) else vars(entry)))
            for entry in run.get("datasets")
        ]
    if not run.get("dataset_name"):
        raise RunFileError("no dataset", todo="set dataset_name to a file, a folder or a Hub name")
    return [
        Source(
            path=run.get("dataset_name"),
            name=run.get("dataset_config"),
            revision=run.get("dataset_revision"),
            split=run.get("dataset_train_split"),
        )
    ]


def _stream_rows(run: Run, sources: list[Source], names: list[str]) -> Rows:
    """Opens the rows without reading them, but for those that are held out."""
    check_streaming(run)
    fractions = [source.fraction for source in sources]
    check_fractions(fractions)
    loaded = [load_splits(source, streaming=True) for source in sources]
    parts = []
    for source, (splits, _) in zip(sources, loaded, strict=True):
        if source.split not in splits:
            raise DataError(
                f"{source.path} has no split {source.split!r} to stream", allowed=", ".join(splits)
            )
        parts.append(_part(source, splits[source.split]))
    features = datasets.Features(
        {name: kind for part in reversed(parts) for name, kind in part.features.items()}
    )
    stream = Stream(
        parts=parts,
        shares=None if fractions[0] is None else [share or 0.0 for share in fractions],
        seed=run.get("seed"),
        window_rows=run.get("shuffle_buffer_size"),
        features=features,
    )
    entries = tuple(
        Entry(name=name, folder=folder, columns=tuple(part.features), start=n * ENTRY_ROWS)
        for n, (name, (_, folder), part) in enumerate(zip(names, loaded, parts, strict=True))
    )
    numbers: list[int] = []
    evaluation = None
    if run.get("eval_size"):
        stream, numbers, evaluation = held_out_rows(stream, int(run.get("eval_size")))
    elif run.get("eval_strategy") not in (None, "no"):
        evaluation = _streamed_test_split(run, sources[0], loaded[0][0])
        numbers = list(range(len(evaluation)))
    numbered: dict[str, Sequence[int]] = {"train": (), "eval": numbers}
    return Rows(train=stream, eval=evaluation, entries=entries, numbers=numbered)


def _streamed_test_split(run: Run, source: Source, splits: Splits) -> datasets.Dataset:
    name = run.get("dataset_test_split")
    if name not in splits or run.get("datasets"):
        raise RunFileError(
            f"eval_strategy {run.get('eval_strategy')} without rows to evaluate on",
            todo="set eval_size, or a dataset_test_split that exists",
        )
    part = _part(source, splits[name])
    rows = [dict(row) for unit in range(part.num_units) for _, row in part.rows(unit)]
    return datasets.Dataset.from_list(rows, features=part.features)


def _part(source: Source, rows: Any) -> Part:
    """Returns opened rows in units, their images as they are stored; all else is decoded."""
    rows = _columns(source, rows)
    if isinstance(rows, datasets.Dataset):
        return Table(table=_undecoded(rows))
    if isinstance(rows, datasets.IterableDataset):
        undecoded = datasets.Features(changed(rows.features, _without_decoding))
        return Shards(stream=rows.cast(undecoded))
    part: Part = rows
    return part


def _name(number: int, source: Source) -> str:
    """Returns what errors call an entry: its number from 1, and what it was asked for."""
    asked = [source.path, source.name, source.data_dir, source.data_files]
    words = [str(word) for word in asked if word is not None]
    split = "" if source.split == "train" else f", split {source.split}"
    return f"entry {number} ({' '.join(words)}{split})"


def _split(source: Source, splits: Splits) -> datasets.Dataset:
    """Returns the rows of a split, or of some in the words of `load_dataset`: `train[:10%]`."""
    try:
        if source.split in splits:
            rows = splits[source.split]
        else:
            lengths = {name: len(rows) for name, rows in splits.items()}
            pieces = datasets.ReadInstruction.from_spec(source.split).to_absolute(lengths)
            rows = datasets.concatenate_datasets(
                [splits[piece.splitname].select(range(piece.from_, piece.to)) for piece in pieces]
            )
    except ValueError as error:
        raise _no_split(source.path, source.split, splits) from error
    if not len(rows):
        raise DataError(f"{source.path} has no rows in split {source.split!r}")
    return rows


def _columns(source: Source, rows: Any) -> Any:
    if source.columns is None:
        return rows
    missing = [column for column in source.columns if column not in rows.column_names]
    if missing:
        raise DataError(
            f"{source.path} has no column {', '.join(map(repr, missing))}",
            allowed=", ".join(map(repr, rows.column_names)),
        )
    return rows.select_columns(source.columns)


def _held_out(run: Run, num_rows: int) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """Returns which of the rows are held out, by `eval_size`; None where it is not set."""
    option, size = "eval_size", run.get("eval_size")
    if run.get("datasets") and run.get("test_split_size") is not None:
        if size is not None:
            raise RunFileError("eval_size and test_split_size both say what is held out")
        option, size = "test_split_size", run.get("test_split_size")
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


def _test_split(run: Run, source: Source, splits: Splits) -> datasets.Dataset | None:
    name = run.get("dataset_test_split")
    if run.get("datasets"):
        if run.is_set("dataset_test_split"):
            raise RunFileError("dataset_test_split with datasets", todo="set eval_size instead")
        return None
    if name in splits and len(splits[name]):
        return _undecoded(_columns(source, splits[name]))
    if run.is_set("dataset_test_split") and name is not None:
        raise _no_split(source.path, name, splits)
    return None


def _no_split(path: str, name: str, splits: Splits) -> DataError:
    there = ", ".join(f"{split} ({len(rows)} rows)" for split, rows in splits.items())
    return DataError(f"{path} has no rows in a split {name!r}", allowed=there or "no splits there")


def _undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    """Returns the rows with every image, in lists and structures too, as its path or bytes.

    `cast_column` would do for plain columns, but rewrites the whole table for lists of images.
    Whether images decode is no part of the stored table, so changing the features is enough.
    """
    rows = rows.with_format(None)
    for name, feature in list(rows.info.features.items()):
        rows.info.features[name] = changed(feature, _without_decoding)
    return rows


def _without_decoding(feature: Any) -> Any:
    return datasets.Image(decode=False) if isinstance(feature, datasets.Image) else feature
