"""The page of `sailplan inspect` in a real browser: its colours, its images, and no surprises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import datasets
import pytest
from PIL import Image
from playwright.sync_api import Browser

from tests.browser.opened import opened
from tests.cli.test_main import sailplan
from tests.inspect.planted import chat, clean_rows, planted_rows, write_rows

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def page(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of data that holds every fault, and markup where text and file names can be."""
    folder = tmp_path_factory.mktemp("page")
    data = folder / "data"
    rows, _ = planted_rows(data)
    rows.insert(0, chat(f"What is {ATTACK}?", f"It is {ATTACK}.", images=["clean-1.png"]))
    rows.insert(1, chat("What?", "Nothing.", images=["<script>alert(3)<|script>.png"]))
    rows += clean_rows(data, 4, prefix="more")
    write_rows(data, rows)
    run = folder / "run.yaml"
    run.write_text(
        f"model_name_or_path: {tiny_model('qwen2_vl')}\ndataset_name: {data}/rows.json\n"
        "max_length: 400\nbatching: pad\nper_device_train_batch_size: 4\n"
        f"output_dir: {folder}/out\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        code, out, err = sailplan(
            "inspect", str(run), "--samples", "4", "--html", str(folder / "page.html")
        )
    assert code == 4, err
    assert out.endswith(f"written: {folder}/page.html\n")
    return folder / "page.html"


def test_page_opens_without_console_errors_and_shows_what_is_attacking_as_text(
    browser: Browser, page: Path
) -> None:
    with opened(browser, page, width=1200) as found:
        assert found.noise == []
        assert found.requests == []
        injected = "document.querySelectorAll('script, [onerror]').length"
        assert found.page.evaluate(injected) == 0
        widths = found.page.evaluate("[...document.images].map((image) => image.naturalWidth)")
        assert len(widths) == 4
        assert all(widths)
        text = str(found.page.evaluate("document.body.textContent"))
    assert text.count("<script>alert(1)</script>") == 2
    assert "<script>alert(3)<|script>.png" in text
    for shown in ("image-missing", "duplicate-rows", "row 1 (from 0)", "×6", "padding ×"):
        assert shown in text


@pytest.mark.parametrize(
    ("scheme", "trained", "image", "ground"),
    [
        ("light", (196, 239, 208), (229, 220, 251), (246, 247, 249)),
        ("dark", (29, 79, 51), (59, 45, 104), (18, 22, 28)),
    ],
    ids=["light", "dark"],
)
def test_screenshot_has_the_colours_of_tokens_and_the_images(
    browser: Browser,
    page: Path,
    tmp_path: Path,
    scheme: Literal["light", "dark"],
    trained: tuple[int, ...],
    image: tuple[int, ...],
    ground: tuple[int, ...],
) -> None:
    picture = tmp_path / "page.png"
    with opened(browser, page, width=1200, scheme=scheme) as found:
        found.page.screenshot(path=picture, full_page=True)

    with Image.open(picture) as shot:
        pixels = shot.convert("RGB")
    colours = {colour: count for count, colour in pixels.getcolors(1 << 24) or []}
    assert pixels.getpixel((2, 2)) == ground
    assert colours.get(trained, 0) > 500
    assert colours.get(image, 0) > 500
    # The red ellipses of the samples, softened by compression.
    reds = sum(n for (r, g, b), n in colours.items() if 185 < r < 215 and g < 50 and b < 50)
    assert reds > 10_000
