"""A real Chromium without a window, from Debian's package."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium")

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on PATH: apt-get install chromium"
)

LIGHT, DARK = 1, 0
"""What Blink calls the two preferred colour schemes."""


def open_page(page: Path, *flags: str, scheme: int = LIGHT) -> tuple[str, list[str]]:
    """Opens a page from disk; returns standard output, and what the page wrote to its console."""
    profile = page.parent / "chromium-profile"
    done = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--disable-dev-shm-usage", "--enable-logging=stderr", "--no-first-run"),
            *(f"--user-data-dir={profile}", "--window-size=1200,3600"),
            *(f"--blink-settings=preferredColorScheme={scheme}", *flags, page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, re.findall(r".*CONSOLE.*", done.stderr)
