"""Loads raw rows, from the Hub or from files, and holds a part of them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from sailplan.data.loading import Source, Splits, changed, load_splits
from sailplan.errors import DataError, RunFileError

if TYPE_CHECKING:
    from sailplan.run.config import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Raw rows: images are stored paths or bytes, never decoded."""

    train: datasets.Dataset
    """The rows to train on."""
    eval: datasets.Dataset | None
    """The rows held out, where there are any."""
    folder: Path | None
    """The folder that relative image paths belong to."""


def load_rows(run: Run) -> Rows:
    """Loads the training rows and the held-out ones.

    `dataset_name` is a file or folder where there is one, else a name on the Hub. Held out are
    `eval_size` rows of the training split, drawn by `seed`, or else `dataset_test_split`.

    Raises:
        RunFileError: No dataset is named, or the options contradict each other.
        DataError: The data is missing, empty, malformed, or lacks a split that was asked for.
    """
    source = _source(run)
    splits, folder = load_splits(source)
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


def _source(run: Run) -> Source:
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
        return Source(**entry)
    if not run.get("dataset_name"):
        raise RunFileError("no dataset", todo="set dataset_name to a file, a folder or a Hub name")
    return Source(
        path=run.get("dataset_name"),
        name=run.get("dataset_config"),
        split=run.get("dataset_train_split"),
    )


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
        rows.info.features[name] = changed(feature, _without_decoding)
    return rows


def _without_decoding(feature: Any) -> Any:
    return datasets.Image(decode=False) if isinstance(feature, datasets.Image) else feature
