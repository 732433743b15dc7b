"""Real tokens a second: TRL's `SFTTrainer` with its own collator against sailplan's trainer.

Both train the same Qwen2-VL of 1.4 million parameters on the same chats with none to three JPEGs,
the same samples in an optimizer step, optimizer, attention kind (sdpa), DataLoader workers and one
thread a process, on a CPU. Real tokens are those of samples: padding counts for nothing. The first
epoch warms up and is not counted. Two kinds of data: lengths as they come (log-normal), and all
alike, where there is no padding to save. TRL runs as it is, which trains on everything but padding,
and with `assistant_only_loss`, which is what sailplan trains on.

    python benchmarks/throughput.py [--repetitions 5] [--samples 32] [--workers 0] [--json FILE]

Prints a table of medians and ratios; exits with 1 where an aim is missed. Measure on a quiet
machine: the runs take turns, so that a slow minute meets all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

AIM_MIXED, AIM_EQUAL = 1.9, 0.97
EPOCHS = 2
MICRO_BATCH, ACCUMULATION = 4, 2
WORDS = ("a", "red", "square", "beside", "the", "small", "green", "triangle", "on", "white")
PEERS = ("trl", "trl assistant", "sailplan")
KINDS = {"mixed": AIM_MIXED, "equal": AIM_EQUAL}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="of the DataLoader, for both")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        train_with_trl(Path(options.child[0]), options.child[1], int(options.child[2]))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = prepare(folder, options.samples)
        rates = measure(folder, tokens, options.repetitions, options.workers)
    return report(rates, tokens, options)


def report(
    rates: dict[str, dict[str, list[float]]], tokens: dict[str, int], options: argparse.Namespace
) -> int:
    """Prints the table and returns the exit code."""
    print(f"{options.samples} samples, micro batch {MICRO_BATCH} × accumulation {ACCUMULATION},")
    print(f"{options.workers} workers, medians of {options.repetitions}, real tokens a second")
    print(f"{'data':<8}{'tokens':>8}" + "".join(f"{peer:>15}" for peer in PEERS) + "    ratios")
    record: dict[str, Any] = {}
    missed = False
    for kind, aim in KINDS.items():
        medians = {peer: statistics.median(rates[kind][peer]) for peer in PEERS}
        ratios = [medians["sailplan"] / medians[peer] for peer in PEERS[:2]]
        line = f"{kind:<8}{tokens[kind]:>8}" + "".join(f"{medians[peer]:15.0f}" for peer in PEERS)
        failed = min(ratios) < aim
        missed |= failed
        words = f"{ratios[0]:.2f}, {ratios[1]:.2f} (aim {aim:g}){'  MISSED' if failed else ''}"
        print(f"{line}    {words}")
        record[kind] = {"tokens_per_s": rates[kind], "medians": medians, "ratios": ratios}
    if options.json:
        settings = {"samples": options.samples, "workers": options.workers}
        options.json.write_text(json.dumps({**settings, **record}, indent=2))
    return 1 if missed else 0


def prepare(folder: Path, samples: int) -> dict[str, int]:
    """Writes the model and both kinds of data, and returns the tokens of each."""
    os.environ |= environment(folder)
    build_model(folder / "model")
    return {kind: write_rows(folder / kind, samples, kind, folder / "model") for kind in KINDS}


def environment(folder: Path) -> dict[str, str]:
    """One thread a process, nothing from a hub, caches of our own."""
    return {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
    }


def build_model(folder: Path) -> None:
    """Writes a random Qwen2-VL with its real processor and chat template."""
    import torch
    from transformers import AutoModelForImageTextToText

    from tests.support.tiny import build_processor

    config, processor = build_processor("qwen2_vl")
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 128, 448, 4
    text.num_attention_heads, text.num_key_value_heads = 4, 2
    text.max_position_embeddings = 8192
    text.rope_parameters["mrope_section"] = [4, 6, 6]
    text.layer_types = ["full_attention"] * 4
    vision.hidden_size, vision.embed_dim, vision.num_heads = 128, 64, 4
    processor.tokenizer.model_max_length = 8192
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_rows(folder: Path, samples: int, kind: str, model: Path) -> int:
    """Writes chats with JPEGs and returns how many tokens they have."""
    from PIL import Image
    from transformers import AutoProcessor

    folder.mkdir()
    chance = random.Random(0)
    processor = AutoProcessor.from_pretrained(model)
    lines, tokens = [], 0
    for number in range(samples):
        images = chance.choices((0, 1, 2, 3), (3, 4, 2, 1))[0] if kind == "mixed" else 1
        sizes = [(chance.randrange(160, 520), chance.randrange(160, 520)) for _ in range(images)]
        sizes = sizes if kind == "mixed" else [(336, 336)]
        names = [f"{number}_{index}.jpg" for index in range(images)]
        pictures = []
        for name, size in zip(names, sizes, strict=True):
            picture = Image.effect_noise((size[0] // 8, size[1] // 8), 60).resize(size)
            picture.convert("RGB").save(folder / name, quality=85)
            pictures.append(picture.convert("RGB"))
        words = (
            round(min(1400, max(20, chance.lognormvariate(5.0, 0.9)))) if kind == "mixed" else 300
        )
        asked = chance.choices(WORDS, k=words // 3)
        said = chance.choices(WORDS, k=words - words // 3)
        if kind == "equal":
            asked, said = ["red"] * len(asked), ["red"] * len(said)
        messages = [
            {"role": "user", "content": " ".join(asked)},
            {"role": "assistant", "content": " ".join(said)},
        ]
        lines.append(json.dumps({"messages": messages, "images": names}))
        parts = [*({"type": "image"} for _ in names), {"type": "text", "text": " ".join(asked)}]
        shown = [{"role": "user", "content": parts}, messages[1]]
        text = processor.apply_chat_template(shown)
        ids = processor(text=[text], images=pictures or None)["input_ids"][0]
        tokens += len(ids)
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return tokens


def measure(
    folder: Path, tokens: dict[str, int], repetitions: int, workers: int
) -> dict[str, dict[str, list[float]]]:
    """Returns the real tokens a second of each run: by data, by trainer."""
    rates: dict[str, dict[str, list[float]]] = {
        kind: {peer: [] for peer in PEERS} for kind in KINDS
    }
    for repetition in range(repetitions):
        for kind in KINDS:
            for peer in PEERS:
                steps = run_once(folder, kind, peer, workers)
                per_epoch = len(steps) // EPOCHS
                seconds = steps[-1] - steps[per_epoch - 1]
                rate = tokens[kind] * (EPOCHS - 1) / seconds
                rates[kind][peer].append(rate)
                print(f"run {repetition + 1} {kind} {peer}: {rate:.0f}", file=sys.stderr)
    return rates


def run_once(folder: Path, kind: str, peer: str, workers: int) -> list[float]:
    """Trains in a process of its own, and returns when each step ended."""
    out = folder / "out" / f"{kind}-{peer}-{time.monotonic_ns()}"
    environ = {**os.environ, **environment(folder)}
    if peer.startswith("trl"):
        program = [sys.executable, __file__, "--child", str(folder), f"{kind}/{peer}", str(workers)]
        done = subprocess.run(program, capture_output=True, text=True, env=environ)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        return [float(line[5:]) for line in done.stdout.splitlines() if line.startswith("STEP ")]
    values = {
        "model_name_or_path": folder / "model",
        "dataset_name": folder / kind / "train.jsonl",
        "output_dir": out,
        **training(workers),
    }
    flags = [text for name, value in values.items() for text in (f"--{name}", str(value))]
    program = [sys.executable, "-m", "sailplan.train.sft_vlm", *flags]
    done = subprocess.run(program, capture_output=True, text=True, env=environ)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-3000:])
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [record["time"] for record in records if "loss" in record]


def training(workers: int) -> dict[str, Any]:
    """What both train with."""
    return {
        "per_device_train_batch_size": MICRO_BATCH,
        "gradient_accumulation_steps": ACCUMULATION,
        "num_train_epochs": EPOCHS,
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_num_workers": workers,
        "attn_implementation": "sdpa",
    }


def train_with_trl(folder: Path, what: str, workers: int) -> None:
    """Trains with TRL's own trainer and collator, and prints when each step ended."""
    import datasets
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    kind, peer = what.split("/")
    lines = (folder / kind / "train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["images"] = [str(folder / kind / name) for name in row["images"]]
    data = datasets.Dataset.from_list(rows)
    data = data.cast_column("images", datasets.List(datasets.Image()))
    settings = training(workers)
    attention = settings.pop("attn_implementation")
    model = AutoModelForImageTextToText.from_pretrained(
        folder / "model", attn_implementation=attention
    )

    class Clock(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            if "loss" in logs:
                print(f"STEP {time.time()}", flush=True)

    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder / "out" / "trl"),
            max_length=None,
            assistant_only_loss=peer.endswith("assistant"),
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=data,
        processing_class=AutoProcessor.from_pretrained(folder / "model"),
        callbacks=[Clock()],
    )
    trainer.train()


if __name__ == "__main__":
    sys.exit(main())
