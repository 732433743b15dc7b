"""Splits in numbers, from the columns of their encoded rows."""

from __future__ import annotations

import datasets
import pytest

from sailplan.data.facts import Split, split_facts
from sailplan.records import from_json, to_json


@pytest.fixture
def rows() -> datasets.Dataset:
    columns = {
        "length": [3, 50, 7, 2],
        "trained": [1, 20, 3, 1],
        "num_images": [0, 2, 1, 0],
        "image_tokens": [0, 30, 4, 0],
    }
    return datasets.Dataset.from_dict(columns).cast_column("length", datasets.Value("int32"))


def test_split_is_counted_over_the_rows_that_were_kept(rows: datasets.Dataset) -> None:
    assert split_facts("train", rows.select([0, 1, 2])) == Split(
        name="train",
        num_rows=3,
        num_tokens=60,
        num_trained_tokens=24,
        num_images=3,
        num_image_tokens=34,
        quantiles=(("least", 3), ("median", 7), ("95 %", 50), ("most", 50)),
    )


def test_split_without_rows_has_no_quantiles(rows: datasets.Dataset) -> None:
    found = split_facts("eval", rows.select([]))
    assert (found.num_rows, found.num_tokens, found.quantiles) == (0, 0, ())


def test_split_of_more_tokens_than_32_bits_count_is_added_up() -> None:
    columns = {
        name: [2**31 - 1] * 3 for name in ("length", "trained", "num_images", "image_tokens")
    }
    features = datasets.Features({name: datasets.Value("int32") for name in columns})
    found = split_facts("train", datasets.Dataset.from_dict(columns, features=features))
    assert found.num_tokens == found.num_image_tokens == 3 * (2**31 - 1)


def test_split_is_read_from_json_as_it_was_written(rows: datasets.Dataset) -> None:
    split = split_facts("train", rows)
    assert from_json(Split, to_json(split)) == split
