"""Raw rows of a stream: every row once, in its order, by its share, on any slot, from anywhere."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from sailplan.data.sources import Rows, load_rows
from sailplan.data.streaming import ENTRY_ROWS, Position
from sailplan.errors import DataError, RunFileError
from sailplan.run.config import Run
from tests.data.streaming.support import (
    STREAM,
    encoded,
    one_pass,
    rows_of,
    stream_of,
    texts,
    write_jsonl,
    write_parquet,
    write_shards,
    write_tar,
)

KINDS = ["jsonl", "parquet", "tar"]


def mixture(folder: Path, shares: tuple[float | None, ...], *more: str) -> Rows:
    entries = []
    for name, share in zip("abc", shares, strict=False):
        path = folder / f"{name}.jsonl"
        write_jsonl(path, [f"{name}-{row}" for row in range(400)])
        entries.append({"path": str(path)} | ({} if share is None else {"fraction": share}))
    (folder / "run.yaml").write_text(json.dumps({"datasets": entries}))
    return load_rows(Run.from_file(folder / "run.yaml", [*STREAM, *more]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(61,), (9, 12, 10), (7,) * 5 + (1,), (4,) * 14], ids=len)
def test_each_pass_has_every_row_once_over_all_ranks_and_workers(
    tmp_path: Path, kind: str, lengths: tuple[int, ...]
) -> None:
    rows = write_shards(tmp_path / "data", kind, lengths)
    stream = stream_of(tmp_path / "data", "--shuffle_buffer_size", "6")
    for slots in sorted({ranks * max(workers, 1) for ranks in (1, 2, 3) for workers in range(4)}):
        for epoch in (0, 1):
            passes = [one_pass(stream, slot, slots, epoch) for slot in range(slots)]
            assert sorted(itertools.chain(*passes)) == sorted(rows)
            counts = [len(found) for found in passes]
            assert max(counts) - min(counts) <= 2 * max(5, *lengths[1:], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_slots_without_a_shard_of_their_own_have_as_many_rows(tmp_path: Path, kind: str) -> None:
    write_shards(tmp_path, kind, (100,))
    counts = [len(one_pass(stream_of(tmp_path), slot, 8)) for slot in range(8)]
    assert min(counts) >= 10
    assert max(counts) <= 15


def test_rows_are_in_another_order_in_each_pass_and_seed(tmp_path: Path) -> None:
    rows = write_shards(tmp_path, "jsonl", (300,))
    stream = stream_of(tmp_path, "--shuffle_buffer_size", "50")
    first, second = one_pass(stream, epoch=0), one_pass(stream, epoch=1)
    assert rows != first != second != rows
    assert one_pass(stream, epoch=0) == first
    assert one_pass(stream_of(tmp_path, "--shuffle_buffer_size", "50", "--seed", "7")) != first


def test_rows_of_all_files_are_mixed_where_row_groups_can_be_read_apart(tmp_path: Path) -> None:
    write_shards(tmp_path, "parquet", (100, 100))
    found = one_pass(stream_of(tmp_path, "--shuffle_buffer_size", "10"))
    assert {text[0] for text in found[:50]} == {"0", "1"}


def test_window_of_one_keeps_the_order_of_the_files(tmp_path: Path) -> None:
    rows = write_shards(tmp_path, "parquet", (15, 15))
    assert one_pass(stream_of(tmp_path, "--shuffle_buffer_size", "1"), epoch=3) == rows


def test_no_row_is_further_from_its_place_than_a_window(tmp_path: Path) -> None:
    write_shards(tmp_path, "jsonl", (95,))
    found = one_pass(stream_of(tmp_path, "--shuffle_buffer_size", "10"))
    for place, text in enumerate(found):
        assert int(text.partition("-")[2]) // 10 == place // 10


@pytest.mark.parametrize("slots", [1, 3])
def test_shares_of_a_mixture_hold_on_every_slot_and_no_row_comes_twice(
    tmp_path: Path, slots: int
) -> None:
    rows = mixture(tmp_path, (0.7, 0.2, 0.1))
    passes = [one_pass(rows.train, slot, slots) for slot in range(slots)]  # type: ignore[arg-type]
    found = list(itertools.chain(*passes))
    assert len(set(found)) == len(found) > 500
    for of_slot in passes:
        parts = Counter(text[0] for text in of_slot)
        for name, share in zip("abc", (0.7, 0.2, 0.1), strict=True):
            assert parts[name] / len(of_slot) == pytest.approx(share, abs=0.02)


def test_entries_without_shares_are_all_read(tmp_path: Path) -> None:
    rows = mixture(tmp_path, (None, None), "--shuffle_buffer_size", "1")
    found = one_pass(rows.train)  # type: ignore[arg-type]
    assert found == [f"{name}-{number}" for name in "ab" for number in range(400)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_slot_goes_on_from_any_position(tmp_path: Path, kind: str, slots: int) -> None:
    write_shards(tmp_path, kind, (13, 21, 8, 16))
    stream = stream_of(tmp_path, "--shuffle_buffer_size", "7", "--eval_size", "3")
    for slot in range(slots):
        whole = list(itertools.islice(stream.drawn(slot, slots), 60))
        for place in range(0, 40, 3):
            position = Position.from_json(json.loads(json.dumps(whole[place][0].as_json())))
            again = list(itertools.islice(stream.drawn(slot, slots, position), 15))
            assert texts(iter(again)) == texts(iter(whole[place + 1 : place + 16]))
            assert [p for p, _ in again] == [p for p, _ in whole[place + 1 : place + 16]]


def test_slot_of_a_mixture_goes_on_from_any_position(tmp_path: Path) -> None:
    stream = mixture(tmp_path, (0.5, 0.3, 0.2), "--shuffle_buffer_size", "50").train
    whole = list(itertools.islice(stream.drawn(1, 2), 500))  # type: ignore[union-attr]
    for place in (0, 49, 50, 120, 333, 420):
        again = stream.drawn(1, 2, whole[place][0])  # type: ignore[union-attr]
        assert texts(itertools.islice(again, 60)) == texts(iter(whole[place + 1 : place + 61]))


def test_going_on_reads_no_row_group_before_the_window(tmp_path: Path) -> None:
    write_shards(tmp_path, "parquet", (400,))
    stream = stream_of(tmp_path, "--shuffle_buffer_size", "20")
    position, _ = list(itertools.islice(stream.drawn(0, 1), 200))[-1]
    (reader,) = stream._readers(position.epoch, 0, 1, position.places)
    next(reader)
    assert position.window == 9
    assert reader.place[0] == position.window * 20 // 5  # units of 5 rows


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_rows_are_the_first_and_never_trained(tmp_path: Path, kind: str) -> None:
    all_rows = write_shards(tmp_path, kind, (4, 20, 20))
    rows = rows_of(tmp_path, "--eval_size", "6", "--eval_strategy", "steps")
    assert rows.eval is not None
    assert rows.eval["text"][:] == all_rows[:6]
    assert list(rows.numbers["eval"]) == list(range(6))
    found = [one_pass(rows.train, slot, 3) for slot in range(3)]  # type: ignore[arg-type]
    assert sorted(itertools.chain(*found)) == sorted(all_rows[6:])
    assert next(rows.train.numbered())[0] == 6  # type: ignore[union-attr]


def test_held_out_rows_of_a_mixture_name_their_entry(tmp_path: Path) -> None:
    rows = mixture(tmp_path, (0.5, 0.5), "--eval_size", "10")
    assert {number // ENTRY_ROWS for number in rows.numbers["eval"]} == {0, 1}
    assert rows.eval is not None
    assert not set(rows.eval["text"]) & set(one_pass(rows.train))  # type: ignore[arg-type]


def test_stored_dataset_is_streamed_from_where_it_lies(tmp_path: Path) -> None:
    import datasets

    rows = [f"0-{number}" for number in range(600)]
    datasets.Dataset.from_dict({"text": rows}).save_to_disk(tmp_path / "saved")
    stream = stream_of(tmp_path / "saved")
    assert sorted(itertools.chain(*(one_pass(stream, slot, 4) for slot in range(4)))) == sorted(
        rows
    )


def test_rows_are_named_by_their_file_and_number_in_it(tmp_path: Path) -> None:
    write_shards(tmp_path / "json", "jsonl", (2, 2))
    write_shards(tmp_path / "tar", "tar", (2, 2))
    write_parquet(tmp_path / "a.parquet", ["0-0"] * 12)
    write_jsonl(tmp_path / "b.jsonl", ["0-0"] * 2)

    def last(data: Path) -> str:
        return [str(row["where"]) for row in encoded(stream_of(data))][-1]

    assert last(tmp_path / "json") == "row 1 (from 0) of train-001.jsonl"
    assert last(tmp_path / "tar") == "row 1 (from 0) of train-001.tar"
    assert last(tmp_path / "a.parquet") == "row 1 (from 0) of row group 2 (from 0) of a.parquet"
    assert last(tmp_path / "b.jsonl") == "row 1 (from 0)"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max_steps", "-1"], "dataset_streaming without max_steps; set max_steps"),
        (["--eval_size", "0.1"], "eval_size 0.1 of a stream; allowed: a count"),
        (
            ["--train_sampling_strategy", "group_by_length"],
            "train_sampling_strategy group_by_length with dataset_streaming",
        ),
        (["--eval_strategy", "steps"], "eval_strategy steps without rows to evaluate on"),
    ],
)
def test_settings_that_need_all_rows_are_refused(
    tmp_path: Path, more: list[str], message: str
) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["0-0"] * 5)
    with pytest.raises(RunFileError) as caught:
        rows_of(tmp_path / "a.jsonl", *more)
    assert message in str(caught.value)


def test_more_rows_held_out_than_there_are_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["0-0"] * 5)
    with pytest.raises(DataError, match="eval_size 5 of a stream of 5 rows"):
        rows_of(tmp_path / "a.jsonl", "--eval_size", "5")


def test_fewer_rows_than_ranks_are_refused_and_fewer_than_workers_are_not(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["0-0", "0-1"])
    stream = stream_of(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"fewer rows than the run has ranks \(3\)"):
        [next(encoded(stream, rank, 3).rows(0, 1)) for rank in range(3)]
    for worker in range(5):
        assert len(list(itertools.islice(encoded(stream).rows(worker, 5), 3))) == 3


def test_rows_that_are_all_left_out_are_told_in_the_end(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["0-0"] * 2000)
    stream = encoded(stream_of(tmp_path / "a.jsonl"))
    stream.encode = lambda *_: None
    with pytest.raises(DataError, match="10000 rows of the stream one after another are longer"):
        next(stream.rows(0, 1))


def test_broken_files_are_one_line_when_they_are_met(tmp_path: Path) -> None:
    write_shards(tmp_path / "tar", "tar", (50, 50))
    whole = tmp_path / "tar" / "train-001.tar"
    whole.write_bytes(whole.read_bytes()[:20_000])
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "0-0"}\n{"text": "\xff"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "0-0"}\n' * 20 + '{"text": "0-0"\n')
    with pytest.raises(DataError, match=r"train-001\.tar"):
        one_pass(stream_of(tmp_path / "tar"))
    for name in ("a.jsonl", "b.jsonl"):
        with pytest.raises(DataError):
            one_pass(stream_of(tmp_path / name))


def test_tar_shards_give_images_as_bytes_and_refuse_columns_not_seen_before(tmp_path: Path) -> None:
    import io
    import tarfile

    def shard(name: str, members: dict[str, bytes]) -> None:
        with tarfile.open(tmp_path / name, "w") as tar:
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

    shard("0.tar", {"a.b.png": b"2", "a.a.png": b"1", "a.json": b'{"x": 1}', "b.json": b'{"x": 2}'})
    rows = list(stream_of(tmp_path, "--shuffle_buffer_size", "1"))
    assert [row["x"] for row in rows] == [1, 2]
    assert [[image["bytes"] for image in row["images"]] for row in rows] == [[b"1", b"2"], []]
    assert rows[0]["images"][0]["path"] == "0.tar/a.a.png"

    shard("1.tar", {"c.json": b'{"x": 3, "y": 4}'})
    with pytest.raises(DataError, match="sample c has 'y', which none of the first"):
        list(stream_of(tmp_path))
    shard("1.tar", {"c.json": b'{"x": 3}', "c.jpg": b"3"})
    shard("0.tar", {"a.json": b'{"x": 1}'})
    with pytest.raises(DataError, match="sample c has images, but the first shard has none"):
        list(stream_of(tmp_path))


def test_tar_shard_passes_over_what_other_slots_have(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [f"0-{number}" for number in range(40)])
    (part,) = stream_of(tmp_path / "0.tar").parts
    rows = list(part.rows(0, 10, lambda row: row % 4 == 1))
    assert [number for number, _ in rows] == list(range(13, 40, 4))
