"""Text that others wrote, on its way to a terminal."""

from __future__ import annotations

import re

_TEXT_DIRECTION = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""They make a terminal show words in another order than they are in (Unicode TR 9)."""

_STEERING = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff{_TEXT_DIRECTION}]")
"""These, control characters but for line breaks and tabs, and surrogates."""


def harmless(text: str) -> str:
    """Returns the text without what could steer the terminal, but for line breaks and tabs."""
    return _STEERING.sub("\ufffd", text)
