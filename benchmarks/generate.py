"""Answers to held-out rows in batches of like length, against TRL's how-to, which asks one by one.

The model is the demo's, trained for a moment on the demo's catalogue, so that its answers end by
themselves: a sentence, a list, or both, as each row asks. The peer is the loop of TRL's article on
vision-language models: for each row the chat template, the processor, and `model.generate`. Both
open the images anew each time, on the same threads; sailplan answers batches as `sailplan compare`
cuts them: rows sorted by length, 8 at a time (its default), and 32.

Before anything is timed, every greedy answer of the two is compared.

    python benchmarks/generate.py [--rows 96] [--repetitions 5] [--threads 1] [--json FILE]
                                  [--folder FOLDER]

With `--folder`, what was trained is kept there and taken from there again. Prints a table of
medians; exits with 1 where an answer differs or the aim is missed. A busy machine shows in fewer
seconds of CPU than of wall time: measure on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if TYPE_CHECKING:
    from sailplan.evaluate.held_out import Asked
    from sailplan.evaluate.speaker import Speaker

AIM = 3.0
LARGE_BATCH = 32
NUM_TRAIN, MAX_STEPS = 2400, 120
ONE_BY_ONE = "one by one, as TRL's how-to"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep the trained model here, or take it")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"
        if not (folder / "run" / "config.json").is_file():
            train(folder, options.rows)
        found = measure(folder, options.rows, options.repetitions, options.threads)
    return show(found, options)


def show(found: dict[str, Any], options: argparse.Namespace) -> int:
    """Prints the table and returns the exit code."""
    low, high = found["row_tokens"]
    print(
        f"{options.rows} rows of {low} to {high} tokens, {options.threads} thread(s), "
        f"medians of {options.repetitions}"
    )
    few, many = found["answer_tokens"]
    print(f"greedy answers of {few} to {many} tokens, of which {found['differing']} differ")
    print(f"{'':30}{'greedy':>26}{'sampling':>26}")
    print(f"{'':30}" + f"{'s':>8}{'CPU s':>8}{'ratio':>10}" * 2)
    missed = found["differing"] > 0
    for name, ways in found["seconds"].items():
        line = f"{name:30}"
        for way, seconds in ways.items():
            ratio = found["ratios"][name][way]
            missed |= name != ONE_BY_ONE and ratio < AIM
            line += f"{seconds['wall']:8.2f}{seconds['cpu']:8.2f}{ratio:10.1f}"
        print(line)
    print(f"aim {AIM:g} times as fast{'  MISSED' if missed else ''}")
    if options.json:
        settings = {"rows": options.rows, "threads": options.threads, "aim": AIM}
        options.json.write_text(json.dumps({**settings, **found}, indent=2))
    return 1 if missed else 0


def measure(folder: Path, num_rows: int, repetitions: int, threads: int) -> dict[str, Any]:
    """Returns the medians of each side, taken in turns, and how many greedy answers differ."""
    import torch

    from sailplan.evaluate.generate import Sampling
    from sailplan.evaluate.speaker import load_speaker
    from sailplan.imports import calm_libraries
    from sailplan.run.blocks import GenerationBlock

    torch.set_num_threads(threads)
    calm_libraries()
    rows, lengths = held_out_rows(folder, num_rows)
    speaker = load_speaker(str(folder / "run"), use_cpu=True)
    defaults = GenerationBlock()
    settings = defaults.model_dump(include={"max_new_tokens", "temperature", "top_p"})
    sampled = Sampling(**settings, seed=defaults.seed)
    greedy = replace(sampled, temperature=0.0)
    most = {"max_new_tokens": defaults.max_new_tokens}

    sides: dict[str, dict[str, Callable[[], list[str]]]] = {
        ONE_BY_ONE: {
            "greedy": lambda: [one_by_one(speaker, row, do_sample=False, **most) for row in rows],
            "sampling": lambda: [
                one_by_one(speaker, row, do_sample=True, **settings) for row in rows
            ],
        }
    }
    for size in (defaults.batch_size, LARGE_BATCH):
        sides[f"sailplan, {size} at a time"] = {
            way: lambda size=size, sampling=sampling: in_batches(
                speaker, rows, lengths, sampling, size
            )
            for way, sampling in (("greedy", greedy), ("sampling", sampled))
        }
    said = {name: ways["greedy"]() for name, ways in sides.items()}
    for ways in sides.values():
        ways["sampling"]()  # warms up
    pairs = zip(*said.values(), strict=True)
    differing = sum(len(set(answers)) > 1 for answers in pairs)
    tokenizer = speaker.processor.tokenizer
    counts = [len(tokenizer(text)["input_ids"]) + 1 for text in said[ONE_BY_ONE]]

    times: dict[str, dict[str, dict[str, list[float]]]] = {
        name: {way: {"wall": [], "cpu": []} for way in ways} for name, ways in sides.items()
    }
    for _ in range(repetitions):
        for name, ways in sides.items():
            for way, answer in ways.items():
                torch.manual_seed(0)
                start, start_cpu = time.perf_counter(), time.process_time()
                answer()
                times[name][way]["wall"].append(time.perf_counter() - start)
                times[name][way]["cpu"].append(time.process_time() - start_cpu)
    seconds = {
        name: {
            way: {kind: statistics.median(values) for kind, values in kinds.items()}
            for way, kinds in ways.items()
        }
        for name, ways in times.items()
    }
    peer = seconds[ONE_BY_ONE]
    return {
        "row_tokens": (min(lengths), max(lengths)),
        "answer_tokens": (min(counts), max(counts)),
        "differing": differing,
        "seconds": seconds,
        "ratios": {
            name: {way: peer[way]["wall"] / taken["wall"] for way, taken in ways.items()}
            for name, ways in seconds.items()
        },
        "runs": times,
    }


def one_by_one(speaker: Speaker, row: Asked, **options: Any) -> str:
    """Answers a row as TRL's how-to does."""
    processor, model = speaker.processor, speaker.model
    images = row.images()
    text = processor.apply_chat_template(row.messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=list(images), padding=True, return_tensors="pt")
    inputs = inputs.to(model.device)
    generated = model.generate(**inputs, **options)
    trimmed = [
        tokens[len(asked) :] for asked, tokens in zip(inputs.input_ids, generated, strict=True)
    ]
    texts = processor.batch_decode(
        trimmed, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return str(texts[0]).strip()


def in_batches(
    speaker: Speaker, rows: Sequence[Asked], lengths: Sequence[int], sampling: Any, size: int
) -> list[str]:
    """Answers rows as `sailplan compare` does."""
    from sailplan.evaluate.answers import Waiting, answers, batches

    waiting = [
        Waiting(key=str(index), asked=row, num_tokens=lengths[index])
        for index, row in enumerate(rows)
    ]
    said = [""] * len(rows)
    for found in answers(speaker, batches(waiting, size), sampling):
        for key, answer in found.items():
            said[int(key)] = answer.text
    return said


def held_out_rows(folder: Path, num_rows: int) -> tuple[list[Asked], list[int]]:
    """Returns the held-out rows as questions, and how long each is with its answer, in tokens."""
    from sailplan.data.encode import Encoder
    from sailplan.data.formats import resolve_format
    from sailplan.data.images import image_opener
    from sailplan.data.prepare import prepare
    from sailplan.data.sources import load_rows
    from sailplan.evaluate.held_out import held_out_questions
    from sailplan.model.families import family_of
    from sailplan.model.processor import load_processor
    from sailplan.model.source import load_config
    from sailplan.run.config import Run

    run = Run.from_file(folder / "run.yaml")
    raw, processor, family = load_rows(run), load_processor(run), family_of(load_config(run))
    format, opener = resolve_format(run, raw), image_opener(run, raw)
    encoded = prepare(run, raw, format, Encoder.of(run, processor, family), opener).eval
    if encoded is None or len(encoded) < num_rows:
        sys.exit(f"{folder} does not hold {num_rows} rows out: name another folder")
    asked = held_out_questions(raw, format, opener, range(num_rows))
    return list(asked), list(encoded["length"])[:num_rows]


TASKS: dict[str, Callable[[dict[str, str]], str]] = {
    "Describe it.": lambda row: row["description"],
    "List what it has.": lambda row: row["listing"],
    "Describe it, and then list all that it has.": lambda row: (
        f"{row['description']}\n{row['listing']}"
    ),
}
"""What rows ask for, in turns."""

RUN_FILE = """\
model_name_or_path: {folder}/model
dataset_name: {folder}/catalogue
dataset_format: template
system_prompt: Write for a shop.
user_prompt: "{{Task}}\\nName: {{Product Name}}\\nCategory: {{Category}}"
answer_column: answer
per_device_train_batch_size: 32
max_steps: {max_steps}
learning_rate: 3.0e-3
lr_scheduler_type: cosine
warmup_steps: 10
weight_decay: 0.0
adam_beta2: 0.95
bf16: false
gradient_checkpointing: false
save_strategy: "no"
logging_steps: 40
report_to: none
use_cpu: true
output_dir: {folder}/run
"""


def train(folder: Path, num_rows: int) -> None:
    """Draws the catalogue, builds the demo's model and trains it until its answers end."""
    from sailplan.demo.catalogue import write_catalogue
    from sailplan.demo.model import build_model

    catalogue = folder / "catalogue"
    write_catalogue(catalogue, num_train=NUM_TRAIN, num_test=num_rows, seed=0)
    texts: list[str] = []
    for split in ("train", "test"):
        file = catalogue / f"{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for number, row in enumerate(rows):
            row["Task"] = list(TASKS)[number % len(TASKS)]
            row["answer"] = TASKS[row["Task"]](row)
            del row["description"], row["listing"]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        texts += ["\n".join(row.values()) for row in rows] if split == "train" else []
    build_model(folder / "model", texts=texts, seed=0)
    run_file = folder / "run.yaml"
    run_file.write_text(RUN_FILE.format(folder=folder, max_steps=MAX_STEPS))
    command = [sys.executable, "-m", "sailplan", "train", str(run_file), "--no-preflight"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"}
    if subprocess.run(command, env=environment, check=False).returncode:
        sys.exit("training failed, see above")


if __name__ == "__main__":
    sys.exit(main())
