"""A page that is opened from disk, and all that it did."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page

_LAYOUT = Path(__file__).with_name("layout.js").read_text(encoding="utf-8")


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """An open page."""

    page: Page
    noise: list[str] = field(default_factory=list)
    """What it wrote to its console, and errors of its script."""
    requests: list[str] = field(default_factory=list)
    """What it asked anybody for, but for itself and what it holds."""

    def faults(self) -> list[str]:
        """Elements that stick out, and texts that lie over each other."""
        return list(self.page.evaluate(_LAYOUT))


@contextlib.contextmanager
def opened(
    browser: Browser,
    path: Path,
    *,
    width: int = 1440,
    scheme: Literal["light", "dark"] = "light",
    scripts: bool = True,
) -> Iterator[Opened]:
    """Opens a page from disk; its network, should it want one, is cut off."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        java_script_enabled=scripts,
        offline=True,
    )
    found = Opened(page=context.new_page())
    address = path.as_uri()
    found.page.on("console", lambda message: found.noise.append(message.text))
    found.page.on("pageerror", lambda error: found.noise.append(str(error)))
    found.page.on(
        "request",
        lambda request: (
            found.requests.append(request.url)
            if request.url != address and not request.url.startswith("data:")
            else None
        ),
    )
    try:
        found.page.goto(address)
        yield found
    finally:
        context.close()
