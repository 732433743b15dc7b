"""The page of `sailplan inspect` in a real browser: its colours, its images, and no surprises."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import datasets
import pytest
from PIL import Image

from tests.browser.chromium import DARK, LIGHT, needs_chromium, open_page
from tests.cli.test_main import sailplan
from tests.inspect.planted import chat, clean_rows, planted_rows, write_rows

pytestmark = needs_chromium

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


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_page_opens_without_console_errors_and_shows_what_is_attacking_as_text(page: Path) -> None:
    dom, console = open_page(page, "--dump-dom")

    assert console == []
    elements = _Elements()
    elements.feed(dom)
    tags = {tag for tag, _ in elements.tags}
    assert "script" not in tags
    assert all(not name.startswith("on") for _, attrs in elements.tags for name in attrs)
    sources = [attrs["src"] for tag, attrs in elements.tags if tag == "img"]
    assert len(sources) == 4
    assert all(source and source.startswith("data:image/webp;base64,") for source in sources)
    text = re.sub(r"<[^>]*>", "", dom)
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
    assert "&lt;script&gt;alert(3)&lt;|script&gt;.png" in text
    for shown in ("image-missing", "duplicate-rows", "row 1 (from 0)", "×6", "padding ×"):
        assert shown in text


@pytest.mark.parametrize(
    ("scheme", "trained", "image", "ground"),
    [
        (LIGHT, (196, 239, 208), (229, 220, 251), (246, 247, 249)),
        (DARK, (29, 79, 51), (59, 45, 104), (18, 22, 28)),
    ],
    ids=["light", "dark"],
)
def test_screenshot_has_the_colours_of_tokens_and_the_images(
    page: Path,
    tmp_path: Path,
    scheme: int,
    trained: tuple[int, ...],
    image: tuple[int, ...],
    ground: tuple[int, ...],
) -> None:
    picture = tmp_path / "page.png"
    open_page(page, f"--screenshot={picture}", scheme=scheme)

    with Image.open(picture) as shot:
        pixels = shot.convert("RGB")
    colours = {colour: count for count, colour in pixels.getcolors(1 << 24) or []}
    assert pixels.getpixel((2, 2)) == ground
    assert colours.get(trained, 0) > 500
    assert colours.get(image, 0) > 500
    # The red ellipses of the samples, softened by compression.
    reds = sum(n for (r, g, b), n in colours.items() if 185 < r < 215 and g < 50 and b < 50)
    assert reds > 10_000
