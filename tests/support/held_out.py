"""The held-out rows of a finished run, and its loss on them by the plainest of loops."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import datasets
import torch

from sailplan.data.collator import Collator
from sailplan.data.encode import Encoder
from sailplan.data.formats import resolve_format
from sailplan.data.images import image_opener
from sailplan.data.prepare import prepare
from sailplan.data.sources import load_rows
from sailplan.model.families import family_of
from sailplan.model.load import load_model
from sailplan.model.processor import load_processor
from sailplan.model.source import load_config
from sailplan.run.config import Run


class Loss(NamedTuple):
    """What the loop found."""

    loss: float
    """Of a trained token, over all rows."""
    accuracy: float
    """The part of trained tokens that are the model's first choice."""
    mean_of_rows: float
    """Of a row, over all rows: what a mean of batches of one would be."""


def plain_loss(output_dir: Path) -> Loss:
    """Computes the loss of what a run saved: one row at a time, one process, from full logits."""
    run = Run.from_file(output_dir / "train.yaml")
    held_out, collator = encoded_rows(run)
    saved = Run(explicit={**run.explicit, "model_name_or_path": str(output_dir)})
    model = load_model(saved).eval().float()
    sums = []
    for row in held_out:
        batch = collator([row])
        labels = batch.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits[:, :-1].double()
        kept = labels != -100
        losses = torch.nn.functional.cross_entropy(logits[kept], labels[kept], reduction="sum")
        right = (logits[kept].argmax(-1) == labels[kept]).sum()
        sums.append((losses.item(), right.item(), int(kept.sum())))
    loss, right, tokens = map(sum, zip(*sums, strict=True))
    means = [row_loss / count for row_loss, _, count in sums]
    return Loss(loss / tokens, right / tokens, sum(means) / len(means))


def encoded_rows(run: Run) -> tuple[datasets.Dataset, Collator]:
    """Returns the encoded held-out rows of a run, and what pads them."""
    processor, family = load_processor(run), family_of(load_config(run))
    rows = load_rows(run)
    format, opener = resolve_format(run, rows), image_opener(run, rows)
    held_out = prepare(run, rows, format, Encoder.of(run, processor, family), opener).eval
    assert held_out is not None
    return held_out, Collator(processor, family, format, opener)
