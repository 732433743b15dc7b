"""Batches for a vision-language model: TRL's own collator against sailplan's, on the same rows.

The rows are chats of one to three turns, their lengths lognormal, with no to three JPEGs of mixed
sizes, in one Parquet file as the Hub has them. Both sides get the rows through a `DataLoader`
without workers: TRL decodes images as `datasets.Image` does and tokenises at each step, with
`assistant_only_loss` and its own training chat template; sailplan reads what `prepare` kept. Model
and processor are a tiny Qwen2-VL with its real image processor. One thread.

Before anything is timed, every batch of the two is compared: tokens, labels and pixels.

    python benchmarks/collator_speed.py [--rows 64] [--batch 4] [--repetitions 5] [--json FILE]

Prints a table; exits with 1 where the aim is missed. A busy machine shows in fewer milliseconds of
CPU than of wall time: measure on a quiet one.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.utils.data import DataLoader

AIM_RATIO = 4.0
SIDES = (200, 1200)
"""The shortest and longest side of an image in pixels; sides between are drawn log-uniform."""
WORDS = ("red", "blue", "green", "small", "large", "round", "cotton", "steel", "with", "without")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"
        record = measure(Path(folder), options.rows, options.batch, options.repetitions)
    ms, cpu = record["ms_per_sample"], record["cpu_ms_per_sample"]
    print(
        f"{options.rows} rows, {record['images']} JPEGs of {record['megapixels']:.1f} megapixels, "
        f"{record['tokens']} tokens, batches of {options.batch}, one thread, "
        f"medians of {options.repetitions}"
    )
    print(f"{'':26}{'ms/sample':>10}{'CPU ms':>9}{'samples/s':>11}{'against TRL':>13}")
    for name, taken in cpu.items():
        rate, ratio = 1e3 / ms[name], ms["TRL"] / ms[name]
        print(f"{name:26}{ms[name]:10.2f}{taken:9.2f}{rate:11.1f}{ratio:13.2f}")
    for name in (name for name in ms if name not in cpu):
        print(f"  {name:24}{ms[name]:10.2f}")
    missed = record["ratio"] < AIM_RATIO
    print(f"{record['ratio']:.2f} times TRL, aim {AIM_RATIO:.1f}{'  MISSED' if missed else ''}")
    if options.json:
        said = {"rows": options.rows, "batch": options.batch, "repetitions": options.repetitions}
        options.json.write_text(json.dumps({**said, **record, "aim": AIM_RATIO}, indent=2))
    return 1 if missed else 0


def measure(folder: Path, num_rows: int, batch_size: int, repetitions: int) -> dict[str, Any]:
    """Returns the medians of each side, taken in turns, and what sailplan's time goes into."""
    import torch

    torch.set_num_threads(1)
    from tests.support.tiny import build_tiny

    build_tiny("qwen2_vl", folder / "model")
    data = write_rows(folder / "rows.parquet", num_rows)
    theirs = trl_loader(folder / "model", data, batch_size)
    ours, parts, about = sailplan_loader(folder / "model", data, batch_size)
    compare(theirs, ours, about.pop("newline"))
    sides = {"TRL": lambda: theirs, "sailplan": lambda: ours, **parts}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, run in sides.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            for _ in run():  # each batch is let go before the next one, as in training
                pass
            wall[name].append(1e3 * (time.perf_counter() - start) / num_rows)
            cpu[name].append(1e3 * (time.process_time() - start_cpu) / num_rows)
    medians = {name: statistics.median(values) for name, values in wall.items()}
    medians["the rest"] = medians["sailplan"] - sum(medians[name] for name in parts)
    return {
        **about,
        "ms_per_sample": medians,
        "cpu_ms_per_sample": {name: statistics.median(cpu[name]) for name in ("TRL", "sailplan")},
        "ratio": medians["TRL"] / medians["sailplan"],
        "runs_ms_per_sample": wall,
    }


def trl_loader(model: Path, data: Path, batch_size: int) -> DataLoader[Any]:
    """Returns batches as TRL's trainer makes them."""
    import datasets
    from torch.utils.data import DataLoader
    from transformers import AutoProcessor
    from trl.chat_template_utils import get_training_chat_template
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    processor = AutoProcessor.from_pretrained(model)
    collator = DataCollatorForVisionLanguageModeling(
        processor,
        assistant_only_loss=True,
        chat_template=get_training_chat_template(processor),
    )
    rows: Any = datasets.load_dataset("parquet", data_files=str(data), split="train")
    return DataLoader(rows, batch_size=batch_size, collate_fn=collator)


def sailplan_loader(
    model: Path, data: Path, batch_size: int
) -> tuple[DataLoader[Any], dict[str, Callable[[], Iterable[object]]], dict[str, Any]]:
    """Returns batches as sailplan's trainer makes them, parts of the work, and the data's size."""
    from torch.utils.data import DataLoader

    from sailplan.data.collator import Collator
    from sailplan.data.encode import Encoder
    from sailplan.data.formats import resolve_format
    from sailplan.data.images import image_opener
    from sailplan.data.media import process_images
    from sailplan.data.prepare import prepare
    from sailplan.data.sources import load_rows
    from sailplan.model.families import family_of
    from sailplan.model.processor import load_processor
    from sailplan.model.source import load_config
    from sailplan.run.config import Run

    flags = ["--model_name_or_path", str(model), "--dataset_name", str(data)]
    run = Run.from_flags([*flags, "--dataset_num_proc", "1", "--max_length", "8192"])
    rows, processor, family = load_rows(run), load_processor(run), family_of(load_config(run))
    format, opener = resolve_format(run, rows), image_opener(run, rows)
    kept = prepare(run, rows, format, Encoder.of(run, processor, family), opener).train
    collator = Collator(processor, family, format, opener)

    references = [format.images(row) for row in rows.train]
    decode = getattr(opener, "decode", opener.open)
    decoded = [[decode(reference) for reference in of_row] for of_row in references]
    batches = [decoded[start : start + batch_size] for start in range(0, len(kept), batch_size)]
    batches = [batch for batch in batches if any(batch)]
    parts: dict[str, Callable[[], Iterable[object]]] = {
        "decoding": lambda: (decode(one) for of_row in references for one in of_row),
        "resizing and patches": lambda: (
            process_images(processor, batch, nested=False) for batch in batches
        ),
    }
    sizes = [opener.size(reference) for of_row in references for reference in of_row]
    about = {
        "images": len(sizes),
        "megapixels": sum(width * height for width, height in sizes) / 1e6,
        "tokens": sum(kept["length"]),
        "newline": processor.tokenizer("\n")["input_ids"][0],
    }
    return DataLoader(kept, batch_size=batch_size, collate_fn=collator), parts, about


def compare(theirs: DataLoader[Any], ours: DataLoader[Any], newline: int) -> None:
    """Ends the program where the two do not make the same of the same rows.

    TRL's template trains the newline behind the end of a turn, which no model is asked for.
    """
    import torch

    for number, (one, other) in enumerate(zip(theirs, ours, strict=True)):
        if "pixel_values" not in one:  # sailplan's has an image that stands in
            continue
        ids, their_ids = written(other, "input_ids"), written(one, "input_ids")
        labels, their_labels = written(other, "labels"), written(one, "labels")
        same = {
            "tokens": torch.equal(ids, their_ids),
            "pixels": torch.equal(other["pixel_values"], one["pixel_values"]),
            "labels": torch.equal(labels, their_labels.masked_fill(their_ids == newline, -100)),
        }
        if not all(same.values()):
            sys.exit(f"the two collators differ in batch {number}: {same}")


def written(batch: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Returns the entries of a batch that are no padding, row behind row."""
    mask = batch.get("attention_mask")
    return batch[name].flatten() if mask is None else batch[name][mask != 0]


def write_rows(path: Path, count: int) -> Path:
    """Writes chats with no to three JPEGs each, embedded in a Parquet file."""
    import datasets
    import numpy as np

    chance = np.random.default_rng(0)
    rows = []
    for number in range(count):
        turns = []
        for turn in range(int(chance.integers(1, 4))):
            question = f"What is to be said of product {number}, part {turn + 1}?"
            length = int(np.clip(chance.lognormal(2.6, 0.8), 3, 150))
            answer = " ".join(chance.choice(WORDS, length)) + "."
            turns += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        images = [{"bytes": jpeg(chance), "path": None} for _ in range(chance.integers(0, 4))]
        rows.append({"images": images, "messages": turns})
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "messages": datasets.List(
                {"role": datasets.Value("string"), "content": datasets.Value("string")}
            ),
        }
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    return path


def jpeg(chance: np.random.Generator) -> bytes:
    """Returns a JPEG with the details and the noise of a photo."""
    import numpy as np
    from PIL import Image

    width, height = (int(side) for side in np.exp(chance.uniform(*np.log(SIDES), 2)))
    coarse = chance.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + chance.normal(0, 5, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
