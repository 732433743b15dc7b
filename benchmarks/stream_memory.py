"""What a stream takes: memory over ten times the data, and the bytes that are read of it.

*Memory*: the rows of a run, with an image each, are read, encoded and collated by the run's own
stream, collator and DataLoader with two workers, once from front to end; of a data set and of one
ten times as large, in parquet shards and in WebDataset's tar shards. What counts is the
proportional set size of the whole process tree at its peak.

*Reading*: a pass over three files by four ranks with two workers each, by sailplan and by
`datasets` alone (`split_dataset_by_node`), rows not encoded: the bytes that the workers read, over
the bytes that there are.

    python benchmarks/stream_memory.py [--rows 600] [--times 10] [--json FILE]

Prints two tables; exits with 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

AIM_GROWTH = 1.10
"""Peak memory over ten times the data, against that over the data."""
AIM_READ = 1.15
"""Bytes read of parquet and tar shards, against the bytes that there are."""
KINDS = ("parquet", "tar", "jsonl")
SHARD_ROWS, GROUP_ROWS, WINDOW_ROWS, BATCH = 200, 48, 100, 4
RANKS, WORKERS, FILES = 4, 2, 3
SAMPLE_EVERY_S = 0.25


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, folder, argument = options.child
        print(json.dumps(CHILDREN[what](Path(folder), argument)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        memory = list(measure_memory(folder, options.rows, options.times))
        reading = list(measure_reading(folder, options.rows * options.times))
    missed = print_memory(memory, options.times) | print_reading(reading)
    if options.json:
        record = {"memory": memory, "reading": reading, "growth_aim": AIM_GROWTH}
        settings = {"rows": options.rows, "times": options.times}
        options.json.write_text(json.dumps({**settings, **record}, indent=2))
    return 1 if missed else 0


def print_memory(found: list[dict[str, Any]], times: int) -> bool:
    """Prints the first table; returns whether an aim is missed."""
    print(f"a pass with {WORKERS} workers, {WINDOW_ROWS} rows a window, {BATCH} rows a batch")
    print(f"{'':10}{'rows':>8}{'data MB':>10}{'peak MB':>10}{'rows/s':>10}{'peak, times':>14}")
    missed = False
    for small, large in zip(found[::2], found[1::2], strict=True):
        growth = large["peak_bytes"] / small["peak_bytes"]
        missed |= growth > AIM_GROWTH
        for one, last in ((small, ""), (large, f"{growth:.2f}{' MISSED' * (growth > AIM_GROWTH)}")):
            print(
                f"{one['kind']:10}{one['rows']:8}{one['data_bytes'] / 1e6:10.0f}"
                f"{one['peak_bytes'] / 1e6:10.0f}{one['rows'] / one['seconds']:10.0f}{last:>14}"
            )
    print(f"aim: at most {AIM_GROWTH:.2f} times the peak over {times} times the data\n")
    return missed


def print_reading(found: list[dict[str, Any]]) -> bool:
    """Prints the second table; returns whether an aim is missed."""
    print(f"a pass over {FILES} files by {RANKS} ranks with {WORKERS} workers each")
    print(f"{'':10}{'read, times the data':>34}{'rows/s of a rank':>30}{'rows twice':>14}")
    print(f"{'':10}{'sailplan':>17}{'datasets':>17}{'sailplan':>15}{'datasets':>15}")
    missed = False
    for one in found:
        ours, theirs = one["sailplan"], one["datasets"]
        wrong = ours["rows"] != one["rows"] or ours["distinct"] != one["rows"]
        most = AIM_READ if one["kind"] != "jsonl" else theirs["times"]
        bad = wrong or ours["times"] > most
        missed |= bad
        print(
            f"{one['kind']:10}{ours['times']:17.2f}{theirs['times']:17.2f}"
            f"{ours['rows_per_s']:15.0f}{theirs['rows_per_s']:15.0f}"
            f"{ours['rows'] - ours['distinct']:14}{'  MISSED' if bad else ''}"
        )
    print(f"aim: at most {AIM_READ:.2f} times the data for parquet and tar, and for jsonl,")
    print("which can be read from its beginning alone, no more than datasets")
    return missed


def measure_memory(folder: Path, rows: int, times: int) -> Iterator[dict[str, Any]]:
    """Yields the peak of a data set and of a larger one, for each kind."""
    from tests.support.tiny import build_tiny

    build_tiny("qwen2_vl", folder / "model")
    for kind, count in itertools.product(("parquet", "tar"), (rows, rows * times)):
        data = folder / f"{kind}-{count}"
        size = write(data, kind, count, -(-count // SHARD_ROWS))
        yield {"kind": kind, "data_bytes": size, **run_child("memory", data, str(count))}


def measure_reading(folder: Path, rows: int) -> Iterator[dict[str, Any]]:
    """Yields what all workers of all ranks read, for each kind."""
    for kind in KINDS:
        data = folder / f"{kind}-read"
        size = write(data, kind, rows, FILES)
        found: dict[str, Any] = {"kind": kind, "rows": rows, "data_bytes": size}
        for who in ("sailplan", "datasets"):
            ranks = run_child(who, data, str(RANKS))["ranks"]
            seen = [number for rank in ranks for number in rank["numbers"]]
            found[who] = {
                "times": sum(rank["read_bytes"] for rank in ranks) / size,
                "rows": len(seen),
                "distinct": len(set(seen)),
                "rows_per_s": sum(len(r["numbers"]) / r["seconds"] for r in ranks) / RANKS,
            }
        yield found


def run_child(what: str, data: Path, argument: str) -> dict[str, Any]:
    """Runs a measurement in a process of its own, and notes its tree's peak meanwhile."""
    command = [sys.executable, __file__, "--child", what, str(data), argument]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(data.parent / "cache")}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    peak_bytes = before_bytes = 0
    while child.poll() is None:
        now_bytes = sum(map(proportional_bytes, tree(child.pid)))
        # Where a worker begins or ends between two of the reads its pages count twice, so that one
        # sample alone shows nothing.
        peak_bytes = max(peak_bytes, min(before_bytes, now_bytes))
        before_bytes = now_bytes
        time.sleep(SAMPLE_EVERY_S)
    assert child.stdout is not None
    if child.returncode:
        sys.exit(f"{what} of {data.name} failed")
    return {**json.loads(child.stdout.read().splitlines()[-1]), "peak_bytes": peak_bytes}


def tree(process: int) -> list[int]:
    """Returns a process and all that came of it."""
    found = [process]
    for one in found:
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:  # it has just ended
            continue
    return found


def proportional_bytes(process: int) -> int:
    """Returns what a process has in memory, a page that n share counted as 1/n."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def memory(data: Path, rows: str) -> dict[str, Any]:
    """Draws as many rows as there are, as training does."""
    from transformers import AutoConfig, AutoProcessor

    from sailplan.data.collator import Collator
    from sailplan.data.encode import Encoder
    from sailplan.data.formats import resolve_format
    from sailplan.data.images import image_opener
    from sailplan.data.prepare import prepare
    from sailplan.data.sources import load_rows
    from sailplan.data.streaming.loader import training_loader
    from sailplan.model.families import family_of
    from sailplan.run.config import Run

    model = str(data.parent / "model")
    run = Run.from_flags(["--model_name_or_path", model, *stream_flags(data)])
    processor = AutoProcessor.from_pretrained(model)
    family = family_of(AutoConfig.from_pretrained(model))
    raw = load_rows(run)
    format, opener = resolve_format(run, raw), image_opener(run, raw)
    stream = prepare(run, raw, format, Encoder.of(run, processor, family), opener).train
    loader = training_loader(
        stream,
        Collator(processor, family, format, opener),
        batch_size=BATCH,
        accumulation=1,
        num_workers=WORKERS,
    )
    start = time.monotonic()
    drawn = sum(len(batch["input_ids"]) for batch in itertools.islice(loader, int(rows) // BATCH))
    return {"rows": drawn, "seconds": time.monotonic() - start}


def sailplan(data: Path, ranks: str) -> dict[str, Any]:
    """Reads the rows of the first pass, rank by rank."""
    from torch.utils.data import DataLoader

    from sailplan.data.sources import load_rows
    from sailplan.data.streaming import EncodedStream
    from sailplan.run.config import Run

    rows = load_rows(Run.from_flags(stream_flags(data))).train
    of_rank = functools.partial(EncodedStream, rows, number_of, world_size=int(ranks))
    passes = [one_pass(of_rank(rank=rank)) for rank in range(int(ranks))]
    return draw([DataLoader(one, batch_size=None, num_workers=WORKERS) for one in passes])


def datasets_alone(data: Path, ranks: str) -> dict[str, Any]:
    """Reads the rows as `datasets` deals them out, rank by rank."""
    import datasets
    from datasets.distributed import split_dataset_by_node
    from torch.utils.data import DataLoader

    kind = {"jsonl": "json", "tar": "webdataset"}.get(data.name.split("-")[0], "parquet")
    files = sorted(map(str, data.iterdir()))
    rows = datasets.load_dataset(kind, data_files={"train": files}, streaming=True)["train"]
    loaders = []
    for rank in range(int(ranks)):
        own = split_dataset_by_node(rows.decode(False), rank=rank, world_size=int(ranks))
        own = own.map(functools.partial(number_of, 0, ""), remove_columns=rows.column_names)
        loaders.append(DataLoader(own, batch_size=None, num_workers=WORKERS))
    return draw(loaders)


def one_pass(encoded: Any) -> Any:
    """Returns the rows of the first pass of whichever worker iterates it."""
    from torch.utils.data import IterableDataset, get_worker_info

    from sailplan.data.streaming import Position

    class Pass(IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            slot = encoded.rank * WORKERS + get_worker_info().id
            rows = encoded.stream.one_pass(slot, encoded.world_size * WORKERS, Position())
            return (encoded.encode(row.entry, "", row.values) for _, row in rows)

    return Pass()


def draw(loaders: list[Any]) -> dict[str, Any]:
    """Draws all rows of each rank; each tells what its worker had read by then."""
    ranks = []
    for loader in loaders:
        start = time.monotonic()
        numbers, read = [], {}
        for row in loader:
            numbers.append(row["number"])
            read[row["process"]] = row["read_bytes"]
        seconds = time.monotonic() - start
        ranks.append({"numbers": numbers, "seconds": seconds, "read_bytes": sum(read.values())})
    return {"ranks": ranks}


def number_of(_entry: int, _where: str, row: Any) -> dict[str, Any]:
    """Returns a row's number, and what this process has read until now."""
    number = row["number"] if "number" in row else row["json"]["number"]
    read = int(Path("/proc/self/io").read_text().split()[1])
    return {"number": number, "process": os.getpid(), "read_bytes": read}


CHILDREN = {"memory": memory, "sailplan": sailplan, "datasets": datasets_alone}


def stream_flags(data: Path) -> list[str]:
    settings = ["--dataset_streaming", "--max_steps", "1", "--use_cpu"]
    return [*settings, "--shuffle_buffer_size", str(WINDOW_ROWS), "--dataset_name", str(data)]


def write(folder: Path, kind: str, rows: int, files: int) -> int:
    """Writes chats with an image each; returns their bytes."""
    folder.mkdir()
    images, chance = pictures(), random.Random(0)
    shards = (range(file, rows, files) for file in range(files))
    for file, numbers in enumerate(shards):
        path = folder / f"train-{file:05}.{kind}"
        WRITERS[kind](path, ((number, chat(number), chance.choice(images)) for number in numbers))
    return sum(path.stat().st_size for path in folder.iterdir())


def chat(number: int) -> list[dict[str, str]]:
    question = f"Describe product {number} in one sentence."
    answer = " ".join(["It is red, round and made of cotton."] * (1 + number % 7))
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def pictures(count: int = 32, pixels: int = 192) -> list[bytes]:
    """Returns JPEGs of noise, which are as large as those of photos four times the size."""
    from PIL import Image

    chance = random.Random(0)
    files = []
    for _ in range(count):
        file = io.BytesIO()
        noise = chance.randbytes(3 * pixels * pixels)
        Image.frombytes("RGB", (pixels, pixels), noise).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def write_parquet(path: Path, rows: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = [
        {"number": number, "messages": turns, "images": [{"bytes": image, "path": None}]}
        for number, turns, image in rows
    ]
    settings = {"row_group_size": GROUP_ROWS, "compression": None, "use_dictionary": False}
    pq.write_table(pa.Table.from_pylist(table), path, **settings)  # images are as large as they are


def write_tar(path: Path, rows: Any) -> None:
    with tarfile.open(path, "w") as tar:
        for number, turns, image in rows:
            text = json.dumps({"number": number, "messages": turns}).encode()
            for suffix, content in (("json", text), ("jpg", image)):
                member = tarfile.TarInfo(f"{number:07}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_jsonl(path: Path, rows: Any) -> None:
    with path.open("w") as file:
        for number, turns, image in rows:
            row = {"number": number, "messages": turns, "text": image.hex()}
            file.write(json.dumps(row) + "\n")


WRITERS = {"parquet": write_parquet, "tar": write_tar, "jsonl": write_jsonl}

if __name__ == "__main__":
    sys.exit(main())
