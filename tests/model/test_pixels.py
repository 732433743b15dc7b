"""The pixel budget, seen by what images become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image

from sailplan.errors import RunFileError
from sailplan.model.pixels import set_pixel_budget
from sailplan.model.processor import load_processor
from sailplan.run.config import Run

Load = Callable[[str], Any]


@pytest.fixture
def load(tiny_model: Callable[[str], Path]) -> Load:
    return lambda family: transformers.AutoProcessor.from_pretrained(tiny_model(family))


def _grid(processor: Any, width: int, height: int) -> tuple[int, int]:
    """Returns height and width in pixels that a Qwen image processor resizes an image to."""
    inputs = processor.image_processor(images=[Image.new("RGB", (width, height))])
    _, rows, columns = inputs["image_grid_thw"][0].tolist()
    return rows * 14, columns * 14


def test_budget_of_qwen_bounds_the_area_both_ways(load: Load) -> None:
    processor = load("qwen2_vl")
    set_pixel_budget(processor, min_pixels=112 * 112, max_pixels=224 * 224)

    assert _grid(processor, 40, 40) == (112, 112)
    assert _grid(processor, 140, 168) == (168, 140)
    assert _grid(processor, 1000, 1000) == (224, 224)


def test_budget_below_the_models_own_minimum_lowers_it(load: Load) -> None:
    processor = load("qwen2_vl")
    set_pixel_budget(processor, min_pixels=None, max_pixels=28 * 28)

    assert _grid(processor, 1000, 1000) == (28, 28)


def test_budget_is_saved_with_the_processor(load: Load, tmp_path: Path) -> None:
    processor = load("qwen2_vl")
    set_pixel_budget(processor, min_pixels=None, max_pixels=224 * 224)
    processor.save_pretrained(tmp_path)

    again = transformers.AutoProcessor.from_pretrained(tmp_path)

    assert _grid(again, 1000, 1000) == (224, 224)


def test_budget_of_pixtral_bounds_the_longest_side(load: Load) -> None:
    processor = load("pixtral")
    set_pixel_budget(processor, min_pixels=None, max_pixels=64 * 64)

    inputs = processor.image_processor(images=[Image.new("RGB", (500, 250))])

    assert [list(size) for size in inputs["image_sizes"]] == [[32, 64]]


@pytest.mark.parametrize(
    ("family", "budget", "message"),
    [
        ("llava", {"max_pixels": 100}, r"max_pixels does nothing for CLIPImageProcessor"),
        ("mllama", {"max_pixels": 100}, r"max_pixels does nothing for MllamaImageProcessor"),
        ("pixtral", {"min_pixels": 100}, r"min_pixels does nothing for PixtralImageProcessor"),
        ("qwen2_vl", {"min_pixels": 200, "max_pixels": 100}, r"min_pixels 200 is more than"),
        ("qwen2_vl", {"max_pixels": 0}, r"max_pixels 0; allowed: 1 or more"),
    ],
)
def test_budget_that_cannot_be_kept_is_an_error(
    load: Load, family: str, budget: dict[str, int], message: str
) -> None:
    limits = {"min_pixels": None, "max_pixels": None, **budget}

    with pytest.raises(RunFileError, match=message):
        set_pixel_budget(load(family), **limits)


def test_budget_of_a_run_is_on_its_processor(tiny_model: Callable[[str], Path]) -> None:
    flags = ["--model_name_or_path", str(tiny_model("qwen2_vl")), "--max_pixels", "12544"]

    assert _grid(load_processor(Run.from_flags(flags)), 1000, 1000) == (112, 112)


def test_budget_for_a_text_model_is_an_error(tiny_model: Callable[[str], Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model("llama"))

    with pytest.raises(RunFileError, match="without images"):
        set_pixel_budget(tokenizer, min_pixels=None, max_pixels=100)
