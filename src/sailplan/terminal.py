"""Text that others wrote, on its way to a terminal."""

from __future__ import annotations

import unicodedata

_TEXT_DIRECTION = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""They make a terminal show words in another order than they are in (Unicode TR 9)."""


def harmless(text: str) -> str:
    """Returns the text without what could steer the terminal, but for line breaks and tabs."""
    return "".join("\ufffd" if _steers(letter) else letter for letter in text)


def _steers(letter: str) -> bool:
    is_control = unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t"
    return is_control or letter in _TEXT_DIRECTION
