"""What a batch holds is counted in the worker that makes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoProcessor

from sailplan.data.collator import Collator
from sailplan.data.counts import (
    COUNTS,
    READING,
    BatchCounts,
    CountingCollator,
    Stopwatch,
    count_batch,
)
from sailplan.data.formats import resolve_format
from sailplan.data.images import image_opener
from sailplan.data.labels import UNTRAINED
from sailplan.data.sources import load_rows
from sailplan.model.families import family_of
from sailplan.run.config import Run
from tests.support.rows import chat_rows


def as_row(length: int, trained: int, num_images: int = 0) -> dict[str, Any]:
    labels = [UNTRAINED] * (length - trained) + [7] * trained
    return {"input_ids": [9] * num_images + [7] * (length - num_images), "labels": labels} | (
        {"num_images": num_images, "image_tokens": num_images} if num_images else {}
    )


def padded(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    return {
        name: torch.tensor([[*row[name], *[filler] * (longest - len(row[name]))] for row in rows])
        for name, filler in (("input_ids", 0), ("labels", UNTRAINED))
    }


def test_counts_of_a_padded_batch_are_those_of_its_rows() -> None:
    rows = [as_row(5, 2, num_images=2), as_row(3, 1), as_row(9, 4, num_images=1)]
    batch = padded(rows) | {"pixel_values": torch.zeros(6, 12)}
    assert count_batch(rows, batch) == BatchCounts(
        tokens=17,
        trained=7,
        samples=3,
        images=3,
        image_tokens=3,
        padding=10,
        squares=25 + 9 + 81,
        pixels=72,
    )


def test_counts_leave_out_the_label_that_nothing_predicts() -> None:
    rows = [as_row(4, 4)]
    assert count_batch(rows, padded(rows)).trained == 3
    shifted = padded(rows) | {"shift_labels": torch.tensor([[7, 7, UNTRAINED]])}
    assert count_batch(rows, shifted).trained == 2


def test_counts_take_an_image_that_stands_in_for_padding(
    tiny_model: Callable[[str], Path], tmp_path: Path, datasets_cache: None
) -> None:
    folder = tiny_model("qwen2_vl")
    run = Run.from_flags(["--dataset_name", str(chat_rows(tmp_path / "data", 2))])
    rows = load_rows(run)
    processor = AutoProcessor.from_pretrained(folder)
    family = family_of(AutoConfig.from_pretrained(folder))
    collator = Collator(processor, family, resolve_format(run, rows), image_opener(run, rows))
    text = [as_row(6, 2) | {"images": []}, as_row(8, 2) | {"images": []}]

    batch = CountingCollator(collator)(text)

    counts = batch.pop(COUNTS)
    assert (counts.tokens, counts.images, counts.image_tokens) == (14, 0, 0)
    assert counts.padding == batch["input_ids"].numel() - 14
    assert counts.pixels == batch["pixel_values"].numel() > 0


class SlowRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows that take a while to be read."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        with READING:
            time.sleep(0.05)
        return as_row(3 + index, 2)


def busy(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    ends = time.process_time() + 0.1
    while time.process_time() < ends:
        pass
    return padded(rows)


@pytest.mark.parametrize("workers", [0, 1])
def test_counts_come_from_workers_with_the_time_that_reading_and_collating_took(
    workers: int,
) -> None:
    loader = DataLoader(
        SlowRows(), batch_size=2, collate_fn=CountingCollator(busy), num_workers=workers
    )
    found = [batch[COUNTS] for batch in loader]
    assert [counts.tokens for counts in found] == [7, 11]
    for counts in found:
        assert counts.read_s >= 0.1
        assert counts.collate_s >= 0.1
        assert counts.cpu_s >= 0.1


def test_stopwatch_counts_the_getting_of_items_and_not_what_is_done_with_them() -> None:
    watch = Stopwatch()
    seen = []
    for item in watch.over(_slowly(3)):
        seen.append(item)
        time.sleep(0.05)
    assert seen == [0, 1, 2]
    assert 0.03 <= watch.taken() < 0.12
    assert watch.taken() == 0.0


def _slowly(count: int) -> Any:
    for number in range(count):
        time.sleep(0.01)
        yield number
