"""What all parts of a chart are drawn with: colours of the page, and text that stays text."""

from __future__ import annotations

import re
from html import escape
from typing import Final

from sailplan.terminal import harmless

_LINES = ("#2f6fb8", "#c2571a", "#2a8a5a", "#8a4fbf")

TEXT: Final = "var(--text,#1b222c)"
QUIET: Final = "var(--quiet,#647081)"
GRID: Final = "var(--line,#e1e5ea)"
MARK: Final = "var(--mark,#c62f2f)"
"""The page's colours, and what they are where a page names none."""

DASHES: Final = {"resume": "1.5 3.5", "rollback": "5 3"}
"""How marks are drawn, by their kind."""

LETTER: Final = 6.3
"""The width of most letters at `FONT_SIZE`, with some to spare, in pixels."""
FONT_SIZE: Final = 11.5

_NO_XML = re.compile("[\ufffe\uffff]")


def colour(place: int) -> str:
    """Returns the colour of a line by its place among the lines, from 0."""
    at = place % len(_LINES)
    return f"var(--c{at},{_LINES[at]})"


def text(words: str) -> str:
    """Returns words as text or as the value of an attribute, whatever they hold."""
    return escape(_NO_XML.sub("\ufffd", harmless(words)), quote=True)
