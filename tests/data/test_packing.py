"""Samples that share a row: the same loss and gradients as alone, and none sees another."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sailplan.data.labels import UNTRAINED
from tests.support.packed import Setting, png
from tests.support.tiny import FAMILIES, MORE_FAMILIES, TEXT_FAMILIES

UNPACKED = ("mllama", "gemma3", "molmo2", "paligemma")
PACKED = sorted({*FAMILIES, *MORE_FAMILIES, *TEXT_FAMILIES} - {*UNPACKED})


@pytest.fixture(scope="module")
def setting(tiny_model: Callable[[str], Path]) -> Callable[[str], Setting]:
    return lambda name: Setting.load(tiny_model(name))


def _gradients(setting: Setting, batches: Sequence[dict[str, Any]]) -> tuple[float, dict[str, Any]]:
    """The loss over all trained tokens of some batches, and its gradient."""
    setting.model.zero_grad()
    trained = sum(int((batch["labels"] != UNTRAINED).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = setting.model(**batch, use_cache=False, num_items_in_batch=trained).loss
        loss.backward()
        total += float(loss.detach())
    parameters = setting.model.named_parameters()
    return total, {name: p.grad.clone() for name, p in parameters if p.grad is not None}


@pytest.mark.parametrize("name", PACKED)
def test_packed_row_has_the_loss_and_gradients_of_its_samples(
    setting: Callable[[str], Setting], name: str
) -> None:
    subject = setting(name)
    rows = subject.rows()
    alone = subject.collate(packs=False)
    loss, gradients = _gradients(subject, [alone([row]) for row in rows])

    packed = subject.collate(packs=True)(rows)
    packed_loss, packed_gradients = _gradients(subject, [packed])

    assert packed["input_ids"].shape == (1, sum(len(row["input_ids"]) for row in rows))
    assert "attention_mask" not in packed
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    assert packed_gradients.keys() == gradients.keys()
    for key, gradient in gradients.items():
        difference = (packed_gradients[key] - gradient).norm()
        assert difference <= 1e-5 * max(gradient.norm(), 1e-3), key


def test_molmo2_which_is_padded_has_other_logits_in_a_packed_row(
    setting: Callable[[str], Setting],
) -> None:
    """Where this fails, it may be packed now."""
    subject = setting("molmo2")
    subject.model.eval()
    rows = [subject.row("A red square.", (84, 60)), subject.row("A line.", (120, 50), seed=7)]
    alone = torch.cat([_logits(subject, subject.collate(packs=False)([row])) for row in rows])

    found = _logits(subject, subject.collate(packs=True)(rows))

    assert subject.family.packing_obstacle
    assert not torch.allclose(found, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", PACKED)
def test_change_of_a_sample_changes_no_other(
    setting: Callable[[str], Setting], name: str, train: bool
) -> None:
    subject = setting(name)
    subject.model.train(train)
    rows = subject.rows()
    collate = subject.collate(packs=True)
    before = _logits(subject, collate(rows))
    lengths = [len(row["input_ids"]) for row in rows]
    starts = np.cumsum([0, *lengths])

    for changed in range(len(rows)):
        others = [rows[i] if i != changed else _other(subject, rows[i]) for i in range(len(rows))]
        after = _logits(subject, collate(others))

        for index, start in enumerate(starts[:-1]):
            span = slice(start, start + lengths[index])
            same = torch.allclose(before[span], after[span], rtol=0, atol=1e-6)
            assert same == (index != changed), f"sample {index} when {changed} is another"


def _other(subject: Setting, row: dict[str, Any]) -> dict[str, Any]:
    """The sample with other words and pixels, of the same length."""
    ids = np.asarray(row["input_ids"]).copy()
    words = np.flatnonzero(np.asarray(row["labels"]) != UNTRAINED)[:3]
    ids[words] = ids[words][::-1] if len(set(ids[words])) > 1 else ids[words] + 1
    images = []
    for image in row["images"]:
        size = Image.open(io.BytesIO(image["bytes"])).size
        images.append({"path": None, "bytes": png(size, 99)})
    return {**row, "input_ids": ids, "images": images}


def _logits(subject: Setting, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return subject.model(**inputs, use_cache=False).logits[0]  # type: ignore[no-any-return]


def test_row_padded_to_a_multiple_has_the_same_loss(setting: Callable[[str], Setting]) -> None:
    subject = setting("qwen2_vl")
    rows = subject.rows()
    plain = subject.collate(packs=True)
    multiple = subject.collate(packs=True, pad_to_multiple_of=128)
    loss, gradients = _gradients(subject, [plain(rows)])

    batch = multiple(rows)
    found, found_gradients = _gradients(subject, [batch])

    assert batch["input_ids"].shape[1] % 128 == 0
    assert found == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["qwen2_vl", "llava", "idefics3"])
def test_row_without_an_image_gets_one_that_changes_no_loss(
    setting: Callable[[str], Setting], name: str
) -> None:
    subject = setting(name)
    rows = [subject.row("Nothing."), subject.row("Nothing at all to be seen here.")]
    loss, _ = _gradients(subject, [subject.collate(packs=True)(rows)])

    batch = subject.collate(packs=True, dummy=True)(rows)
    found, gradients = _gradients(subject, [batch])

    assert found == pytest.approx(loss, rel=1e-6)
    tower = [key for key in gradients if key.startswith(subject.family.vision_prefixes)]
    assert tower
    assert not any(gradients[key].any() for key in tower)


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", ["qwen2_vl", "llava", "mllama", "llama"])
def test_rank_without_a_sample_reaches_what_others_train_and_trains_nothing(
    setting: Callable[[str], Setting], name: str, packs: bool
) -> None:
    subject = setting(name)
    if packs and name == "mllama":
        return
    batch = subject.collate(packs=packs)([])

    loss = subject.model(**batch, use_cache=False, num_items_in_batch=7).loss
    loss.backward()

    assert float(loss.detach()) == 0
    assert ("pixel_values" in batch) == (name != "llama")
    reached = {key for key, p in subject.model.named_parameters() if p.grad is not None}
    subject.model.zero_grad()
    _, wanted = _gradients(subject, [subject.collate(packs=packs)([subject.row("A.", (56, 56))])])
    assert reached == wanted.keys()


def test_rows_without_labels_have_no_loss(setting: Callable[[str], Setting]) -> None:
    subject = setting("llama")
    rows = subject.rows()[:2]
    for row in rows:
        row["labels"] = np.full(len(row["labels"]), UNTRAINED)
        row["labels"][0] = row["input_ids"][0]  # which nothing predicts
    batch = subject.collate(packs=True)(rows)
    assert (batch["labels"] == UNTRAINED).all()
