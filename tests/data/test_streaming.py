"""Rows that are read while training: order, shares, ranks, workers, held-out rows, going on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from sailplan.data.sources import Rows, load_rows
from sailplan.data.streaming import ENTRY_ROWS, EncodedStream, Stream
from sailplan.errors import DataError, RunFileError
from sailplan.run.config import Run
from tests.support.launch import Entry, accelerate_launch, entry_script, flags, losses
from tests.support.rows import chat_rows

STREAM = ["--dataset_streaming", "--max_steps", "3"]


def rows_in(path: Path, count: int) -> Path:
    """Rows of text that tell their number."""
    lines = (json.dumps({"text": f"{path.stem} {number}"}) + "\n" for number in range(count))
    path.write_text("".join(lines))
    return path


def stream_of(data: Path, *more: str) -> Stream:
    return rows_of(data, *more).train  # type: ignore[return-value]


def rows_of(data: Path, *more: str) -> Rows:
    return load_rows(Run.from_flags(["--dataset_name", str(data), *STREAM, *more, "--use_cpu"]))


def mixture(folder: Path, shares: tuple[float | None, ...], *more: str) -> Rows:
    entries = []
    for number, share in enumerate(shares):
        path = rows_in(folder / f"{'abc'[number]}.jsonl", 400)
        entries.append({"path": str(path)} | ({} if share is None else {"fraction": share}))
    (folder / "run.yaml").write_text(json.dumps({"datasets": entries}))
    return load_rows(Run.from_file(folder / "run.yaml", [*STREAM, *more]))


def texts(rows: Iterator[tuple[int, Any]]) -> list[str]:
    return [row["text"] for _, row in rows]


def encoded(stream: Stream, rank: int = 0, world_size: int = 1) -> EncodedStream:
    """The stream of one rank, encoded as nothing but the row's number."""
    return EncodedStream(stream, _number, rank=rank, world_size=world_size, batch_size=2)


def _number(number: int, _: Any) -> dict[str, Any]:
    return {"number": number}


def _numbers(batch: list[dict[str, Any]]) -> list[int]:
    return [row["number"] for row in batch]


def batches(stream: EncodedStream, workers: int, count: int) -> list[list[int]]:
    loader = DataLoader(stream, batch_size=2, collate_fn=_numbers, num_workers=workers)
    return list(itertools.islice(loader, count))


def test_a_pass_has_every_row_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    stream = stream_of(rows_in(tmp_path / "a.jsonl", 300), "--shuffle_buffer_size", "50")

    first, second = texts(stream.epoch(0)), texts(stream.epoch(1))

    files = [f"a {number}" for number in range(300)]
    assert sorted(first) == sorted(second) == sorted(files)
    assert files != first != second
    assert texts(stream.epoch(0)) == first
    other = stream_of(tmp_path / "a.jsonl", "--shuffle_buffer_size", "50", "--seed", "7")
    assert texts(other.epoch(0)) != first


def test_buffer_of_one_keeps_the_order_of_the_files(tmp_path: Path) -> None:
    stream = stream_of(rows_in(tmp_path / "a.jsonl", 30), "--shuffle_buffer_size", "1")
    assert texts(stream.epoch(3)) == [f"a {number}" for number in range(30)]


def test_shares_of_a_mixture_hold_and_no_row_comes_twice(tmp_path: Path) -> None:
    rows = mixture(tmp_path, (0.7, 0.2, 0.1))

    found = texts(rows.train.epoch(0))  # type: ignore[union-attr]

    assert len(set(found)) == len(found) > 500
    for name, share in zip("abc", (0.7, 0.2, 0.1), strict=True):
        part = sum(text.startswith(name) for text in found) / len(found)
        assert part == pytest.approx(share, abs=0.05)
    assert found == texts(rows.train.epoch(0))  # type: ignore[union-attr]


def test_entries_without_shares_follow_one_another(tmp_path: Path) -> None:
    rows = mixture(tmp_path, (None, None), "--shuffle_buffer_size", "1")
    found = texts(rows.train.epoch(0))  # type: ignore[union-attr]
    assert found == [f"{name} {number}" for name in "ab" for number in range(400)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("count", [64, 61], ids=["even", "uneven"])
def test_each_row_goes_to_one_rank_and_one_worker(tmp_path: Path, workers: int, count: int) -> None:
    stream = stream_of(rows_in(tmp_path / "a.jsonl", count))
    num_batches = count // 4

    ranks = [batches(encoded(stream, rank, 2), workers, num_batches) for rank in (0, 1)]

    found = [number for rank in ranks for batch in rank for number in batch]
    assert len(found) == len(set(found)) == 4 * num_batches
    order = [number for number, _ in stream.epoch(0)]
    dealt = [list(itertools.chain.from_iterable(rank)) for rank in ranks]
    assert dealt[0] == order[0 : 4 * num_batches : 2]
    assert dealt[1] == order[1 : 4 * num_batches : 2]


def test_workers_do_not_change_the_batches(tmp_path: Path) -> None:
    stream = encoded(stream_of(rows_in(tmp_path / "a.jsonl", 31)))
    alone = batches(stream, 0, 40)
    assert batches(stream, 2, 40) == batches(stream, 3, 40) == alone
    passes = list(itertools.chain.from_iterable(alone))
    assert passes[:31] != passes[31:62]  # each in an order of its own


def test_held_out_rows_are_the_first_and_never_trained(tmp_path: Path) -> None:
    rows = rows_of(
        rows_in(tmp_path / "a.jsonl", 40), "--eval_size", "6", "--eval_strategy", "steps"
    )

    assert rows.eval is not None
    assert rows.eval["text"][:] == [f"a {number}" for number in range(6)]
    assert list(rows.numbers["eval"]) == list(range(6))
    trained = texts(rows.train.epoch(0))  # type: ignore[union-attr]
    assert sorted(trained) == sorted(f"a {number}" for number in range(6, 40))


def test_held_out_rows_of_a_mixture_name_their_entry(tmp_path: Path) -> None:
    rows = mixture(tmp_path, (0.5, 0.5), "--eval_size", "10")
    held_out = set(rows.numbers["eval"])
    assert {number // ENTRY_ROWS for number in held_out} == {0, 1}
    assert not held_out & {number for number, _ in rows.train.epoch(0)}  # type: ignore[union-attr]


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
    with pytest.raises(RunFileError) as caught:
        rows_of(rows_in(tmp_path / "a.jsonl", 5), *more)
    assert message in str(caught.value)


def test_more_rows_held_out_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="eval_size 5 of a stream of 5 rows"):
        rows_of(rows_in(tmp_path / "a.jsonl", 5), "--eval_size", "5")


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    with entry_script(tmp_path_factory.mktemp("cache")) as run:
        yield run


def settings(tmp_path: Path, tiny_model: Callable[[str], Path], rows: int) -> dict[str, Any]:
    data = tmp_path / "data"
    return {
        "model_name_or_path": tiny_model("qwen2_vl"),
        "dataset_name": data / "train.jsonl" if data.is_dir() else chat_rows(data, rows),
        "dataset_streaming": True,
        "per_device_train_batch_size": 2,
        "max_steps": 8,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
    }


def test_run_that_goes_on_sees_the_rows_of_an_undisturbed_one(
    tmp_path: Path, tiny_model: Callable[[str], Path], entry: Entry
) -> None:
    values = settings(tmp_path, tiny_model, 11) | {"eval_size": 3, "eval_strategy": "steps"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    end = entry(flags(values | {"output_dir": whole}))
    assert end.code == 0, end.err
    first = values | {"output_dir": parts, "save_steps": 5, "max_steps": 8}
    end = entry(flags(first))
    assert end.code == 0, end.err

    end = entry(flags(first | {"resume_from_checkpoint": parts / "checkpoint-5"}))

    assert end.code == 0, end.err
    assert losses(parts)[-3:] == losses(whole)[-3:] == losses(parts)[5:8]
    assert len(set(losses(whole))) == 8


def test_bad_row_of_a_stream_is_one_line_with_its_number(
    tmp_path: Path, tiny_model: Callable[[str], Path], entry: Entry
) -> None:
    values = settings(tmp_path, tiny_model, 4) | {"output_dir": tmp_path / "out"}
    file = tmp_path / "data" / "train.jsonl"
    bad = {"messages": [{"role": "user", "content": "a"}], "images": []}
    file.write_text(file.read_text() + json.dumps(bad) + "\n")
    for workers in (0, 2):
        end = entry(flags(values | {"dataloader_num_workers": workers}))
        assert end.code == 4
        assert end.err.endswith(
            "error: train row 4 (from 0): there is no assistant turn to train on; add an answer, "
            "or drop it\n"
        )


def test_two_ranks_train_on_a_stream_with_an_uneven_end(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    values = settings(tmp_path, tiny_model, 9) | {"output_dir": tmp_path / "out"}
    values |= {
        "dataloader_num_workers": 1,
        "eval_size": 2,
        "eval_strategy": "steps",
        "eval_steps": 4,
    }
    values.pop("use_cpu")  # the launcher writes it

    done = accelerate_launch(flags(values), preset="ddp", processes=2)

    assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(tmp_path / "out")) == 8
