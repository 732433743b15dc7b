"""Samples are shown as the collator makes them, token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sailplan.data.collator import Collator
from sailplan.data.encode import Encoder
from sailplan.data.formats import resolve_format
from sailplan.data.images import image_opener
from sailplan.data.labels import UNTRAINED
from sailplan.data.prepare import prepare
from sailplan.data.sources import load_rows
from sailplan.inspect.inspection import inspect_run
from sailplan.inspect.samples import pick, pieces
from sailplan.model.families import family_of
from sailplan.model.processor import load_processor
from sailplan.model.source import load_config
from sailplan.run.config import Run
from tests.support.rows import chat_rows
from tests.support.tiny import VISION_FAMILIES, build_tokenizer


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_tokens_are_those_of_the_batches_that_train(
    tiny_model: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    data = chat_rows(tmp_path / "data", 4)
    run = Run.from_flags(
        [
            *("--model_name_or_path", str(tiny_model(family)), "--dataset_name", str(data)),
            *("--per_device_train_batch_size", "2", "--batching", "pad"),
        ]
    )
    rows, processor = load_rows(run), load_processor(run)
    format, opener = resolve_format(run, rows), image_opener(run, rows)
    facts = family_of(load_config(run))
    encoder = Encoder.of(run, processor, facts)
    trained = prepare(run, rows, format, encoder, opener).train
    collator = Collator(processor, facts, format, opener, dummy_image=False)

    shown = inspect_run(run, num_samples=4).samples

    for start in (0, 2):
        batch = collator([trained[start], trained[start + 1]])
        for position in (0, 1):
            sample = shown[start + position]
            ids, kinds = [], []
            for piece in sample.pieces:
                ids += list(piece.ids) * piece.count
                kinds += [piece.kind] * (piece.count * len(piece.ids))
            assert ids == batch["input_ids"][position].tolist()
            labels = batch["labels"][position].tolist()
            assert [kind == "trained" for kind in kinds] == [label != UNTRAINED for label in labels]
            mask = batch["attention_mask"][position].tolist()
            assert [kind != "padding" for kind in kinds] == [bool(seen) for seen in mask]
            media = encoder.untrained_ids
            assert all(
                token in media for token, kind in zip(ids, kinds, strict=True) if kind == "image"
            )
            assert sum(sample.num_tokens.values()) == len(ids)


def test_tokens_that_are_parts_of_one_letter_are_shown_together() -> None:
    tokenizer = build_tokenizer("qwen2_vl")
    text = "a 😀 b"
    ids = tokenizer(text)["input_ids"]
    found = list(pieces(tokenizer, ids, ["context"] * len(ids)))
    assert "".join(piece.text for piece in found) == text
    assert len(next(piece for piece in found if "😀" in piece.text).ids) > 1


def test_sample_rows_lie_evenly_from_the_first_to_the_last() -> None:
    assert pick(range(101), 3) == [0, 50, 100]
    assert pick([4, 9], 5) == [4, 9]
    assert pick(range(9), 1) == [0]
    assert pick([], 3) == pick(range(3), 0) == []
