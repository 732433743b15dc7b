"""Ids of the cache against those of the model's own processor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoProcessor

from sailplan.data.default_template import complete_template
from sailplan.data.encode import Encoder
from sailplan.data.formats import resolve_format
from sailplan.data.images import image_opener
from sailplan.data.own_ids import check_own_ids, difference
from sailplan.data.prepare import prepare
from sailplan.data.sources import load_rows
from sailplan.model.families import family_of
from sailplan.run.config import Run
from tests.support.rows import chat_rows, mixed_rows
from tests.support.tiny import MORE_FAMILIES, VISION_FAMILIES

pytestmark = pytest.mark.usefixtures("datasets_cache")


def prepared(folder: Path, data: Path) -> tuple[Any, ...]:
    run = Run.from_flags(["--model_name_or_path", str(folder), "--dataset_name", str(data)])
    rows = load_rows(run)
    format, opener = resolve_format(run, rows), image_opener(run, rows)
    processor = AutoProcessor.from_pretrained(folder)
    family = family_of(AutoConfig.from_pretrained(folder))
    complete_template(processor, family, chat=True)
    encoder = Encoder.of(run, processor, family)
    return encoder, format, opener, rows, prepare(run, rows, format, encoder, opener).train


@pytest.mark.parametrize("family", [*VISION_FAMILIES, *MORE_FAMILIES])
def test_cached_ids_are_those_of_every_familys_own_processor(
    tmp_path: Path, tiny_model: Callable[[str], Path], family: str
) -> None:
    write = chat_rows if family in ("mllama", "paligemma") else mixed_rows
    found = check_own_ids(*prepared(tiny_model(family), write(tmp_path / "data", 8)))

    assert found == []


def test_other_ids_are_told_with_the_first_that_differs(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    encoder, format, opener, rows, encoded = prepared(
        tiny_model("qwen2_vl"), mixed_rows(tmp_path / "data", 8)
    )
    # A processor that was changed after the cache had been made.
    folder = tmp_path / "other"
    encoder.processor.save_pretrained(folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["image_processor"]["size"]["longest_edge"] = 28 * 28 * 4
    (folder / "processor_config.json").write_text(json.dumps(settings))
    encoder.processor = AutoProcessor.from_pretrained(folder)

    (warning,) = check_own_ids(encoder, format, opener, rows, encoded)

    assert warning.startswith("warning: qwen2_vl: train row ")
    assert "'<|image_pad|>' for training, and '<|vision_end|>' for the model's own" in warning


def test_sample_that_is_cut_off_is_compared_as_far_as_it_goes(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    encoder, format, opener, rows, encoded = prepared(
        tiny_model("qwen2_vl"), mixed_rows(tmp_path / "data", 8)
    )
    raw, ids = rows.train[1], [int(token) for token in encoded[1]["input_ids"]]
    encoder.truncate = True

    assert difference(encoder, format, opener, raw, ids[:-3]) is None
    assert difference(encoder, format, opener, raw, [*ids[:5], 7, *ids[6:]]) is not None
    encoder.truncate = False
    assert "none for training" in str(difference(encoder, format, opener, raw, ids[:-3]))
