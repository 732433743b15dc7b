"""What fills micro batches, against batches that are really made."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from sailplan.data.balance import Work
from sailplan.data.encode import Encoder
from sailplan.data.extent import extent_of
from sailplan.data.formats import resolve_format
from sailplan.data.images import image_opener
from sailplan.data.prepare import prepare
from sailplan.data.sampler import Samples, StepSampler
from sailplan.data.sources import load_rows
from sailplan.data.work import work_of
from sailplan.errors import RunFileError
from sailplan.inspect.inspection import Inspection
from sailplan.inspect.padding import Padding, Settings, padding_of
from sailplan.model.families import family_of
from sailplan.run.config import Run
from tests.support.rows import chat_rows, mixed_rows

WORK = Work(attention=1 / 768)


def samples_of(count: int, most: int = 90) -> Samples:
    chance = random.Random(count)
    lengths = np.array([chance.randrange(1, most) for _ in range(count)])
    return Samples(lengths=lengths, image_tokens=np.zeros_like(lengths), work=WORK)


def found(samples: Samples, **changes: Any) -> Padding:
    plain = {"packs": False, "why": "", "micro_batch_size": 4, "step_samples": 16}
    return padding_of(samples, Settings(**{**plain, **changes}))


def dealt(samples: Samples, *, packs: bool, epoch: int = 0) -> list[list[int]]:
    """The micro batches of an epoch."""
    return list(
        StepSampler(
            samples,
            packs=packs,
            step_samples=16,
            ranks=1,
            accumulation=4,
            rank=0,
            seed=0,
            step=lambda: epoch * 10**6,
            drop_last=False,
        )
    )


def test_packed_rows_have_no_padding_and_the_largest_is_the_samplers() -> None:
    samples = samples_of(200)
    packed = found(samples, packs=True)
    tokens = [int(samples.lengths[row].sum()) for row in dealt(samples, packs=True)]
    assert packed.share == packed.padding_tokens == 0
    assert packed.largest_tokens == max(tokens)
    assert packed.sample_tokens == samples.lengths.sum()
    assert packed.imbalance is not None
    assert packed.imbalance < 0.1
    assert packed.random_share > 0.3
    assert f"packed rows of up to {max(tokens)} tokens; " in packed.words


@pytest.mark.parametrize("multiple", [1, 8])
def test_padded_micro_batches_have_the_padding_of_those_that_are_made(multiple: int) -> None:
    samples = samples_of(80)  # five whole steps
    up = -(-samples.lengths // multiple) * multiple
    rounded = Samples(lengths=up, image_tokens=samples.image_tokens, work=WORK)
    sizes = [len(batch) * int(up[batch].max()) for batch in dealt(rounded, packs=False)]
    padded = found(samples, multiple=multiple)
    assert padded.share == pytest.approx(1 - samples.lengths.sum() / sum(sizes))
    assert padded.largest_tokens == max(sizes)
    assert padded.share < padded.random_share


def test_order_that_transformers_rebalances_is_dealt_as_the_usual_one() -> None:
    samples = samples_of(200)
    assert found(samples, order="batch_rebalance") == found(samples, order="random")


@pytest.mark.parametrize("packs", [True, False])
def test_rows_grouped_by_length_are_not_dealt(packs: bool) -> None:
    samples = samples_of(2000)
    grouped = found(samples, packs=packs, order="group_by_length", dealt=False)
    assert grouped.imbalance is None
    assert grouped.share == 0 if packs else 0 < grouped.share < grouped.random_share / 2
    assert "heaviest" not in grouped.words


def test_one_sample_at_a_time_has_no_padding() -> None:
    single = found(samples_of(50), micro_batch_size=1, step_samples=1)
    assert single.share == single.random_share == 0
    assert single.imbalance is None


def test_packed_row_is_filled_up_to_its_multiple() -> None:
    packed = found(samples_of(200), packs=True, multiple=64)
    assert packed.largest_tokens % 64 == 0
    assert 0 < packed.share < 0.2


@pytest.mark.parametrize(
    ("family", "flags", "packs", "why"),
    [
        ("qwen2_vl", (), True, "batching: pack; each optimizer step has the samples"),
        ("qwen2_vl", ("--batching", "pad"), False, "batching: pad (batching: pad)"),
        ("gemma3", (), False, "gemma3 cannot be packed: its image tokens attend to each other"),
    ],
)
def test_inspection_says_how_micro_batches_are_made_and_why(
    tmp_path: Path,
    inspect: Callable[..., Inspection],
    family: str,
    flags: tuple[str, ...],
    packs: bool,
    why: str,
) -> None:
    data = chat_rows(tmp_path / "data", 12)
    asked = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "3")
    padding = inspect(data, *asked, *flags, family=family).padding
    assert padding is not None
    assert (padding.packs, padding.step_samples) == (packs, 6)
    assert why in padding.why
    assert (padding.share == 0) is packs


def test_packing_that_the_model_cannot_do_is_an_error(
    tmp_path: Path, inspect: Callable[..., Inspection]
) -> None:
    data = chat_rows(tmp_path / "data", 4)
    with pytest.raises(RunFileError, match="attend to each other in both directions"):
        inspect(data, "--batching", "pack", family="gemma3")


@pytest.mark.usefixtures("datasets_cache")
def test_largest_row_is_the_one_that_training_deals(
    tmp_path: Path, inspect: Callable[..., Inspection], tiny_model: Callable[[str], Path]
) -> None:
    folder, data = tiny_model("qwen2_vl"), mixed_rows(tmp_path / "data", 32)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor, family = AutoProcessor.from_pretrained(folder), family_of(model.config)
    run = Run.from_flags(["--model_name_or_path", str(folder), "--dataset_name", str(data)])
    rows = load_rows(run)
    encoder = Encoder.of(run, processor, family)
    encoded = prepare(run, rows, resolve_format(run, rows), encoder, image_opener(run, rows))
    sampler = StepSampler(
        Samples.of(encoded.train, work_of(model, processor, family)),
        packs=True,
        step_samples=8,
        ranks=1,
        accumulation=2,
        rank=0,
        seed=run.get("seed"),
        step=lambda: 0,
        drop_last=False,
    )

    asked = ("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2")
    padding = inspect(data, *asked).padding

    assert padding is not None
    assert padding.largest_tokens == extent_of(sampler, 3).tokens  # num_train_epochs
