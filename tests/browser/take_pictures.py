"""Takes the pictures of docs/gallery.md of a demo's report, in a real browser.

python -m tests.browser.take_pictures REPORT docs/pictures    # make gallery does it
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from tests.browser.opened import opened

Scheme = Literal["light", "dark"]

PICTURES: tuple[tuple[str, str, int, int, Scheme], ...] = (
    ("verdict", "", 1280, 900, "light"),
    ("samples", "#samples", 1280, 900, "light"),
    ("samples-dark", "#samples", 1280, 900, "dark"),
    ("curves", "#curves", 1280, 860, "light"),
    ("watched", "#watched", 1280, 860, "light"),
    ("phone", "#samples", 390, 844, "light"),
)
"""Name, part of the page, width and height in pixels, colours."""


def main(arguments: Sequence[str]) -> None:
    """Writes them.

    Args:
        arguments: The page, and the folder.
    """
    page, folder = Path(arguments[0]).absolute(), Path(arguments[1])
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name, part, width, height, scheme in PICTURES:
            content = _taken(browser, page, part, width, height, scheme)
            with Image.open(io.BytesIO(content)) as picture:
                picture.save(folder / f"report-{name}.webp", quality=82, method=6)
        browser.close()


def _taken(
    browser: Browser, path: Path, part: str, width: int, height: int, scheme: Scheme
) -> bytes:
    with opened(browser, path, width=width, scheme=scheme) as shown:
        shown.page.set_viewport_size({"width": width, "height": height})
        if part:
            shown.page.evaluate("(part) => document.querySelector(part).scrollIntoView()", part)
        return shown.page.screenshot()


if __name__ == "__main__":
    main(sys.argv[1:])
