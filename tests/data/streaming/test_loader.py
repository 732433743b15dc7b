"""What the trainer draws from: micro batches of whole steps, in order, from any state on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from accelerate import skip_first_batches

from sailplan.errors import DataError
from tests.data.streaming.support import (
    encoded,
    loader,
    stream_of,
    work,
    write_shards,
)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_ranks_and_workers_share_the_rows_of_a_pass(
    tmp_path: Path, kind: str, workers: int
) -> None:
    rows = write_shards(tmp_path, kind, (20, 20, 20))
    stream = stream_of(tmp_path, "--shuffle_buffer_size", "7")
    found = [
        text
        for rank in range(2)
        for batch in itertools.islice(
            loader(encoded(stream, rank, 2), num_workers=workers, batch_size=3), 10
        )
        for text in batch
    ]
    assert sorted(found) == sorted(rows)


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_steps_have_their_samples_and_come_in_turn(tmp_path: Path, workers: int) -> None:
    write_shards(tmp_path, "parquet", (40, 40, 40))
    stream = stream_of(tmp_path, "--shuffle_buffer_size", "9")
    settings = {"batch_size": 3, "accumulation": 4, "num_workers": workers}
    plain = list(itertools.islice(loader(encoded(stream), **settings), 24))
    dealt = list(itertools.islice(loader(encoded(stream), work=work, **settings), 24))
    count = max(workers, 1)
    slots = [encoded(stream).rows(slot, count) for slot in range(count)]
    for step in range(6):
        same = slice(4 * step, 4 * step + 4)
        expected = [row["text"] for _, row in itertools.islice(slots[step % count], 12)]
        assert list(itertools.chain(*plain[same])) == expected
        assert sorted(itertools.chain(*dealt[same])) == sorted(expected)
    assert all(len(batch) == 3 for batch in plain)


def test_micro_batches_of_a_step_have_nearly_equal_work(tmp_path: Path) -> None:
    write_shards(tmp_path, "jsonl", (200,))
    batches = loader(encoded(stream_of(tmp_path)), batch_size=4, accumulation=4, work=work)
    for _ in range(5):
        sums = [
            sum(int(text.partition("-")[2]) + 1 for text in batch)
            for batch in itertools.islice(batches, 4)
        ]
        assert min(sums) > 0
        assert max(sums) / min(sums) < 1.2


@pytest.mark.parametrize("workers", [0, 3])
def test_loader_goes_on_from_its_state_whatever_was_read_ahead(
    tmp_path: Path, workers: int
) -> None:
    write_shards(tmp_path, "parquet", (60, 30, 30))
    stream = encoded(stream_of(tmp_path, "--shuffle_buffer_size", "11", "--eval_size", "2"))
    settings = {"accumulation": 2, "num_workers": workers, "work": work, "prefetch": 8}
    whole = list(itertools.islice(loader(stream, **settings), 40))
    for steps in (0, 1, 4, 7, 14):
        first = loader(stream, **settings)
        drawn = iter(first)
        list(itertools.islice(drawn, 2 * steps))
        state = json.loads(json.dumps(first.dataset.state_dict()))
        assert state["steps"] == steps
        assert len(json.dumps(state)) < 1000
        second = loader(stream, **settings)
        second.dataset.load_state_dict(state)
        drawn = list(itertools.islice(second, 2 * steps + 10))
        assert drawn[: 2 * steps] == [None] * (2 * steps)  # what the trainer passes over
        assert drawn[2 * steps :] == whole[2 * steps : 2 * steps + 10]


def test_state_of_other_data_or_ranks_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, "parquet", (60,))
    stream = stream_of(tmp_path)
    state = loader(encoded(stream)).dataset.state_dict()
    with pytest.raises(DataError, match="stood at a place of ranks 1, and now has 2"):
        loader(encoded(stream, 0, 2)).dataset.load_state_dict(state)
    with pytest.raises(DataError, match="a place of workers 1, and now has 2"):
        loader(encoded(stream), num_workers=2).dataset.load_state_dict(state)
    write_shards(tmp_path, "parquet", (60, 60))
    with pytest.raises(DataError, match="a place of units"):
        loader(encoded(stream_of(tmp_path))).dataset.load_state_dict(state)


def test_batches_are_skipped_as_the_trainer_skips_them(tmp_path: Path) -> None:
    write_shards(tmp_path, "parquet", (60,))
    stream = encoded(stream_of(tmp_path))
    whole = list(itertools.islice(loader(stream, accumulation=2), 20))
    skipped = skip_first_batches(loader(stream, accumulation=2), 6)
    assert list(itertools.islice(skipped, 14)) == whole[6:]
    assert skipped.dataset.state_dict()["steps"] == 10
