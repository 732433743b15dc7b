"""Positions of packed rows, against what the model itself makes of each sample alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from sailplan.model.packed_attention import attend_by_mask
from sailplan.model.positions import Positions
from tests.support.packed import Setting


@pytest.mark.parametrize("family", ["llama", "llava", "pixtral"])
def test_positions_begin_anew_with_each_sample(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    positions = Positions(AutoConfig.from_pretrained(tiny_model(family)))
    found = positions.of([3, 1, 2], [0, 0, 0], torch.zeros(1, 6, dtype=torch.long))
    assert found.tolist() == [[0, 1, 2, 0, 0, 1]]


def test_text_counts_alike_in_all_dimensions(tiny_model: Callable[[str], Path]) -> None:
    positions = Positions(AutoConfig.from_pretrained(tiny_model("qwen2_vl")))
    found = positions.of([2, 3], [0, 0], torch.zeros(1, 5, dtype=torch.long))
    assert found.tolist() == [[[0, 1, 0, 1, 2]]] * 4


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_images_have_the_positions_that_the_model_gives_each_sample(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_model(family)).model
    grids = torch.tensor([[1, 4, 6], [1, 2, 4], [1, 4, 4]])
    tokens = [6, 2, 4]  # two by two patches make one token
    samples = [
        [0, 0, *[1] * tokens[0], 0, *[1] * tokens[1], 0, 0, 0],
        [0, 0, 0, 0],
        [*[1] * tokens[2], 0],
    ]
    counts, own = [2, 0, 1], []
    for sample, of_sample in zip(samples, grids.split(counts), strict=True):
        types = torch.tensor([sample])
        plain = torch.arange(len(sample))[None, None]
        deep = plain.repeat(3, 1, 1)
        if len(of_sample):
            deep, _ = model.get_rope_index(types, mm_token_type_ids=types, image_grid_thw=of_sample)
        own.append(torch.cat([plain, deep]))
    types = torch.tensor([[kind for sample in samples for kind in sample]])

    found = Positions(model.config).of([len(s) for s in samples], counts, types, types, grids)

    assert found.shape == (4, 1, types.shape[1])
    assert found.equal(torch.cat(own, dim=2))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_positions_of_other_shapes_let_samples_touch_or_lose_their_dimensions(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    """Why there are four rows: transformers takes three, and one, without a word."""
    subject = Setting.load(tiny_model(family))
    attend_by_mask(subject.model)
    rows = subject.rows()
    batch = subject.collate(packs=True)(rows)
    labels, positions = batch.pop("labels"), batch.pop("position_ids")
    assert positions.shape == (4, 1, labels.shape[1])

    @torch.no_grad()
    def logits(**inputs: torch.Tensor) -> torch.Tensor:
        return subject.model(**inputs, use_cache=False).logits[0]  # type: ignore[no-any-return]

    alone = []
    for row in rows:
        own = subject.collate(packs=False)([row])
        del own["labels"]
        alone.append(logits(**own))

    def error(given: torch.Tensor) -> float:
        found = logits(**batch, position_ids=given)
        return float((found - torch.cat(alone)).abs().max())

    rounding = error(positions)
    assert rounding < 1e-5
    assert error(positions[1:]) > 10 * max(rounding, 1e-6)
    assert error(positions[0]) > 10 * max(rounding, 1e-6)
