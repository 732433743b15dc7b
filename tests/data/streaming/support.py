"""Streams of rows that tell their number, in every kind of file."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sailplan.data.sources import Rows, load_rows
from sailplan.data.streaming import EncodedStream, Position, Stream
from sailplan.data.streaming.loader import training_loader
from sailplan.run.config import Run

STREAM = ["--dataset_streaming", "--max_steps", "3"]


def write_jsonl(path: Path, texts: Sequence[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_parquet(path: Path, texts: Sequence[str], *, row_group_size: int = 5) -> None:
    pq.write_table(pa.table({"text": list(texts)}), path, row_group_size=row_group_size)


def write_tar(path: Path, texts: Sequence[str]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, text in enumerate(texts):
            content = json.dumps({"text": text}).encode()
            member = tarfile.TarInfo(f"{number:05}.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


WRITERS: dict[str, Callable[[Path, Sequence[str]], None]] = {
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "tar": write_tar,
}


def write_shards(folder: Path, kind: str, lengths: Sequence[int]) -> list[str]:
    """Writes shards of those lengths; returns the texts of all rows, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = []
    for shard, length in enumerate(lengths):
        own = [f"{shard}-{row}" for row in range(length)]
        WRITERS[kind](folder / f"train-{shard:03}.{kind}", own)
        texts += own
    return texts


def rows_of(data: Path, *more: str) -> Rows:
    return load_rows(Run.from_flags(["--dataset_name", str(data), *STREAM, *more, "--use_cpu"]))


def stream_of(data: Path, *more: str) -> Stream:
    return rows_of(data, *more).train  # type: ignore[return-value]


def texts(rows: Iterator[tuple[Position, Any]]) -> list[str]:
    return [row.values["text"] for _, row in rows]


def one_pass(stream: Stream, slot: int = 0, num_slots: int = 1, epoch: int = 0) -> list[str]:
    """The texts of one pass of a slot."""
    return texts(stream.one_pass(slot, num_slots, Position(epoch=epoch)))


def encoded(stream: Stream, rank: int = 0, world_size: int = 1) -> EncodedStream:
    """The stream of one rank, encoded as nothing but the row's text and where it is."""
    return EncodedStream(stream, as_text, rank=rank, world_size=world_size)


def as_text(_entry: int, where: str, row: Any) -> dict[str, Any]:
    return {"text": row["text"], "where": where, "length": int(row["text"].partition("-")[2]) + 1}


def collate(rows: Sequence[Any]) -> list[str]:
    return [row["text"] for row in rows]


def work(row: Any) -> float:
    return float(row["length"])


def loader(stream: EncodedStream, **settings: Any) -> Any:
    return training_loader(stream, collate, **{"batch_size": 2, "accumulation": 1, **settings})
