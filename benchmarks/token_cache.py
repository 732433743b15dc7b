"""Encoding every row once, and reading it, against tokenising it at every step as TRL does.

The rows are chats with 0 to 3 JPEGs of mixed sizes and answers of lognormal length; model and
processor are a tiny Qwen2-VL with its real processor and chat template. The peer is TRL's collator
for vision-language data with `assistant_only_loss`, on one thread, given images that are decoded
already; what its image processor takes alone is taken off, since pixels have to be made either way.

    python benchmarks/token_cache.py [--rows 6000] [--workers 2] [--repetitions 5] [--json FILE]

Prints a table of medians; exits with 1 where an aim is missed. A busy machine shows in fewer
seconds of CPU than workers × wall: measure on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

AIM_ROWS_PER_S = 1000.0
AIM_READ_MS = 0.3
BATCH_ROWS = 4
PEER_ROWS = 64
NUM_PICTURES = 120
COMMON_SIZES = ((640, 480), (480, 640), (1024, 768), (500, 375), (800, 800), (224, 224))
TEXT = (
    "the shoe is light and red with a sole of rubber that grips on wet stone its laces are round "
    "in size from small to large made for running hiking or work every day without heavy weight"
)
WORDS = TEXT.split()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"
        found = measure(Path(folder), options.rows, options.workers, options.repetitions)
    print(
        f"{options.rows} rows, {found['tokens_per_row']:.0f} tokens and "
        f"{found['images_per_row']:.1f} images each, {options.workers} workers, "
        f"{len(os.sched_getaffinity(0))} cores"
    )
    print(f"{'':44}{'ms/row':>9}{'rows/s':>9}")
    for name in ("TRL collator", "of it images", "of it text", "build", "read"):
        ms = found[f"{name} ms"]
        print(f"{LABELS[name]:44}{ms:9.3f}{1e3 / ms:9.0f}")
    rate = options.rows / found["build_cpu_s"]
    print(f"build: {found['build_s']:.1f} s, {found['build_cpu_s']:.1f} s of CPU", end=", ")
    print(f"{rate:.0f} rows/CPU s")
    print(f"start from the cache: {found['start_s'] * 1e3:.0f} ms")
    print(f"on disk: {found['bytes_per_token']:.2f} bytes a token")
    print(f"text at every step takes {found['text_to_read']:.0f} times as long as reading it")
    print(f"and {found['text_to_build']:.1f} times as long as encoding it once, on all workers")
    missed = {
        f"build {found['build rows_per_s']:.0f} rows/s, aim {AIM_ROWS_PER_S:.0f}": (
            found["build rows_per_s"] < AIM_ROWS_PER_S
        ),
        f"read {found['read ms']:.3f} ms/row, aim {AIM_READ_MS}": found["read ms"] > AIM_READ_MS,
    }
    for line, is_missed in missed.items():
        print(f"{line}{'  MISSED' if is_missed else ''}")
    if options.json:
        aims = {"aim_rows_per_s": AIM_ROWS_PER_S, "aim_read_ms": AIM_READ_MS}
        options.json.write_text(
            json.dumps({**vars(options), "json": None, **found, **aims}, indent=2)
        )
    return 1 if any(missed.values()) else 0


LABELS = {
    "TRL collator": "TRL's collator, at every step",
    "of it images": "  of it image processor",
    "of it text": "  of it tokenising",
    "build": "sailplan, once: encode and write",
    "read": "sailplan, at every step: read ids and labels",
}


def measure(folder: Path, num_rows: int, workers: int, repetitions: int) -> dict[str, Any]:
    """Returns medians; what is imported, loaded and known of the machine is warm."""
    import numpy as np

    from sailplan.data.token_cache import folder as cache_folder
    from sailplan.data.token_rows import column
    from tests.support.tiny import build_tiny

    build_tiny("qwen2_vl", folder / "model")
    data = write_rows(folder / "data", num_rows)
    flags = ["--model_name_or_path", str(folder / "model"), "--dataset_name", str(data)]
    start = starter([*flags, "--dataset_num_proc", str(workers), "--max_length", "16384"])
    builds, cpu, starts = [], [], []
    for _ in range(repetitions):
        shutil.rmtree(cache_folder(), ignore_errors=True)
        cpu_before = cpu_s()
        builds.append(timed(start)[0])
        cpu.append(cpu_s() - cpu_before)
        took, rows = timed(start)
        starts.append(took)
    lengths = column(rows, "length")
    file = next(cache_folder().glob("*.arrow"))
    order = np.random.default_rng(0).permutation(num_rows)[:2000].tolist()
    batches = [order[at : at + BATCH_ROWS] for at in range(0, len(order), BATCH_ROWS)]
    reads = [
        timed(lambda: [rows.__getitems__(batch) for batch in batches])[0] / len(order)
        for _ in range(repetitions)
    ]
    collate, images = peer(folder / "model", data, repetitions)
    build, read = statistics.median(builds), statistics.median(reads)
    return {
        "TRL collator ms": collate * 1e3,
        "of it images ms": images * 1e3,
        "of it text ms": (collate - images) * 1e3,
        "build ms": build / num_rows * 1e3,
        "read ms": read * 1e3,
        "build rows_per_s": num_rows / build,
        "build_s": build,
        "build_cpu_s": statistics.median(cpu),
        "start_s": statistics.median(starts),
        "bytes_per_token": file.stat().st_size / int(lengths.sum()),
        "tokens_per_row": float(lengths.mean()),
        "images_per_row": float(column(rows, "num_images").mean()),
        "text_to_read": (collate - images) / read,
        "text_to_build": (collate - images) / (build / num_rows),
    }


def starter(flags: list[str]) -> Callable[[], Any]:
    """Returns what a start does with the data, once its files are found and the model is known."""
    import transformers

    from sailplan.data.encode import Encoder
    from sailplan.data.formats import resolve_format
    from sailplan.data.images import image_opener
    from sailplan.data.prepare import prepare
    from sailplan.data.sources import load_rows
    from sailplan.model.families import family_of
    from sailplan.run.config import Run

    run = Run.from_flags(flags)
    model = run.get("model_name_or_path")
    processor = transformers.AutoProcessor.from_pretrained(model)
    family = family_of(transformers.AutoConfig.from_pretrained(model))
    rows = load_rows(run)
    format, opener = resolve_format(run, rows), image_opener(run, rows)

    def start() -> Any:
        encoder = Encoder.of(run, processor, family)
        return prepare(run, rows, format, encoder, opener).train

    return start


def peer(model: Path, data: Path, repetitions: int) -> tuple[float, float]:
    """Returns the seconds a row that TRL's collator takes, and those of its images alone."""
    import torch
    import transformers
    from PIL import Image
    from trl.chat_template_utils import get_training_chat_template
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    torch.set_num_threads(1)
    processor = transformers.AutoProcessor.from_pretrained(model)
    collator = DataCollatorForVisionLanguageModeling(
        processor, assistant_only_loss=True, chat_template=get_training_chat_template(processor)
    )
    rows = [json.loads(line) for line in data.read_text().splitlines()[:PEER_ROWS]]
    for row in rows:
        row["images"] = [Image.open(data.parent / name).convert("RGB") for name in row["images"]]
    batches = [rows[at : at + BATCH_ROWS] for at in range(0, len(rows), BATCH_ROWS)]
    pictures = [[image for row in batch for image in row["images"]] for batch in batches]

    def collate() -> None:
        for batch in batches:
            collator([dict(row) for row in batch])

    def process() -> None:
        for group in filter(None, pictures):
            processor.image_processor(images=group, return_tensors="pt")

    collate()
    whole = statistics.median(timed(collate)[0] for _ in range(repetitions))
    alone = statistics.median(timed(process)[0] for _ in range(repetitions))
    return whole / len(rows), alone / len(rows)


def write_rows(folder: Path, count: int) -> Path:
    """Writes chats whose images are drawn from a few hundred JPEGs, each row's under own names."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    chance = random.Random(0)
    noise = np.random.default_rng(0)
    for number in range(NUM_PICTURES):
        own = (chance.randrange(200, 1100), chance.randrange(200, 1100))
        size = chance.choice(COMMON_SIZES) if number % 2 else own
        small = Image.fromarray(noise.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        small.resize(size).save(folder / f"{number}.jpg", quality=85)
    lines = []
    for number in range(count):
        names = [f"{chance.randrange(NUM_PICTURES)}.jpg" for _ in range(chance.randrange(4))]
        length = min(400, max(5, round(chance.lognormvariate(4.0, 0.7))))
        question = f"Describe product {number} for the shop, in the tone of the brand."
        answer = " ".join(chance.choices(WORDS, k=length)).capitalize() + "."
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"images": names, "messages": turns}))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Returns how many seconds work takes, and what it returns."""
    start = time.perf_counter()
    done = work()
    return time.perf_counter() - start, done


def cpu_s() -> float:
    """Returns the processor seconds of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    print(f"took {time.monotonic() - started:.0f} s", file=sys.stderr)
    sys.exit(code)
