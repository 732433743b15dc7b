"""The LM head where a label is, against TRL's fused head as it is: seconds of a training step.

The same trainer, model and packed rows; a third of the tokens is trained on, as in most chats. On a
CPU TRL's head scores every position; ours is given the positions by the collator. The vocabulary is
that of Llama 2 over a narrow model, as large language models have it the other way around: the
share of the head in a step, not its gain, is what the model's width decides.

    python benchmarks/lm_head.py [--repetitions 5] [--vocabulary 32000] [--json FILE]

Prints medians and their ratio; exits with 1 where ours is not the faster one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

TOKENS, SAMPLES, TRAINED = 2048, 4, 1 / 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), options.vocabulary, options.repetitions)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["every position"] / medians["where a label is"]
    print(
        f"a row of {TOKENS} tokens, {TRAINED:.0%} trained, {options.vocabulary} words, one thread"
    )
    for name, value in medians.items():
        print(f"{name:20}{value:8.3f} s a step")
    print(f"ratio {ratio:.2f}{'  MISSED' if ratio <= 1 else ''}")
    if options.json:
        options.json.write_text(json.dumps({"seconds": seconds, "ratio": ratio}, indent=2))
    return 0 if ratio > 1 else 1


def measure(folder: Path, vocabulary: int, repetitions: int) -> dict[str, list[float]]:
    """Returns the seconds of each step, forward and backward, of both ways in turn."""
    import datasets
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sailplan.data.balance import Work
    from sailplan.data.collator import Collator
    from sailplan.data.conversations import Messages
    from sailplan.data.images import ImageOpener
    from sailplan.data.loss_inputs import LossInputs
    from sailplan.model.families import family_of
    from sailplan.model.packed_attention import attend_by_segment
    from sailplan.model.positions import Positions
    from sailplan.train.trainer import Trainer
    from tests.support.batches import training_arguments
    from tests.support.tiny import build_processor

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    model = LlamaForCausalLM(config)
    attend_by_segment(model)
    _, tokenizer = build_processor("llama")
    collator = Collator(
        tokenizer,
        family_of(config),
        Messages(image_columns=()),
        ImageOpener(root=None),
        positions=Positions(config),
    )
    trainer = Trainer(
        model=model,
        args=training_arguments(folder, max_steps=1),
        collator=collator,
        work=lambda _: Work(),
        train_dataset=datasets.Dataset.from_list([{"input_ids": [0]}]),
        processing_class=tokenizer,
    )
    length = TOKENS // SAMPLES
    ids = torch.randint(0, vocabulary, (SAMPLES, length))
    labels = ids.masked_fill(torch.arange(length) < length * (1 - TRAINED), -100)
    rows = [
        {"input_ids": of_row.numpy(), "labels": wanted.numpy()}
        for of_row, wanted in zip(ids, labels, strict=True)
    ]
    seconds: dict[str, list[float]] = {"every position": [], "where a label is": []}
    for repetition in range(repetitions + 1):
        for name, taken in seconds.items():
            batch: dict[str, Any] = LossInputs(collate=collator)(rows)
            ways = contextlib.nullcontext()
            if name == "every position":
                del batch["shift_labels"]
                ways = mock.patch.object(trainer.head, "at", return_value=contextlib.nullcontext())
            start = time.perf_counter()
            with ways:
                trainer.compute_loss(model, batch).backward()
            model.zero_grad()
            if repetition:  # the first warms up
                taken.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
