"""The pixel budget, seen by what images become."""

from __future__ import annotations

import math
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
        ("gemma3", {"max_pixels": 100}, r"max_pixels does nothing for Gemma3ImageProcessor"),
        ("llava_next", {"max_pixels": 100}, r"max_pixels 100; allowed: 1568 or more: one tile"),
        ("idefics3", {"max_pixels": 100}, r"max_pixels 100; allowed: 1024 or more: one tile"),
        ("internvl", {"max_pixels": 100}, r"max_pixels 100; allowed: 784 or more: one tile"),
        ("internvl", {"min_pixels": 100}, r"min_pixels does nothing for GotOcr2ImageProcessor"),
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


SHAPES = [(60, 84), (500, 400), (400, 500), (1000, 40), (40, 1000), (8, 8), (2000, 1500)]
TILES = {
    "llava_next": 28 * 28,
    "llava_onevision": 28 * 28,
    "idefics3": 32 * 32,
    "smolvlm": 32 * 32,
    "internvl": 28 * 28,
    "molmo2": 56 * 56,
}
"""The overview that a family shows on top of the budget, in pixels."""


def shown(processor: Any, family: str, size: tuple[int, int]) -> int:
    """Returns how many pixels of a picture the model is shown, without padding."""
    from sailplan.data.media import process_images

    nested = family in ("idefics3", "smolvlm")
    inputs, _ = process_images(processor, [[Image.new("RGB", size)]], nested=nested)
    return int(inputs["pixel_values"].numel()) // (6 if "qwen" in family else 3)


@pytest.mark.parametrize("budget", [4000, 7000, 20_000])
@pytest.mark.parametrize(
    "family",
    [
        *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "pixtral", "mistral3"),
        *("llava_next", "llava_onevision", "idefics3", "smolvlm", "internvl", "molmo2"),
    ],
)
def test_budget_holds_for_pictures_of_any_shape(load: Load, family: str, budget: int) -> None:
    free, bound = load(family), load(family)
    set_pixel_budget(bound, min_pixels=None, max_pixels=budget)

    for size in SHAPES:
        limit = budget + TILES.get(family, 0)
        if "qwen" in family:  # of a strip, one row of tokens remains
            token = 32 if family == "qwen3_vl" else 28
            length = math.sqrt(budget * max(size) / min(size))
            limit = max(limit, token * math.ceil(length / token) * token)
        assert shown(bound, family, size) <= limit, size
    if budget == 4000 and family != "llava_next":  # which the processor alone exceeds
        assert any(shown(free, family, s) > budget + TILES.get(family, 0) for s in SHAPES)


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_grids_of_the_model_follow_those_of_its_processor(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    from sailplan.data.media import process_images
    from sailplan.model.load import load_model

    flags = ["--model_name_or_path", str(tiny_model(family)), "--max_pixels", "1568", "--use_cpu"]
    run = Run.from_flags(flags)
    processor, model = load_processor(run), load_model(run)

    for size in SHAPES[:3]:
        inputs, (text,) = process_images(processor, [[Image.new("RGB", size)]], nested=False)
        ids = processor.tokenizer(text + " What?", return_tensors="pt")
        names = ("pixel_values", "image_sizes")
        loss = model(**ids, **{n: inputs[n] for n in names}, labels=ids["input_ids"]).loss
        assert loss.isfinite()
