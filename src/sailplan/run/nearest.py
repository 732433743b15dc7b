"""What a misspelled name was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns "did you mean X?", or an empty text where nothing comes near."""
    lowered = {candidate.lower(): candidate for candidate in known}
    name = name.lower().replace("-", "_")
    longer = [candidate for candidate in lowered if candidate.startswith(f"{name}_")]
    near = difflib.get_close_matches(name, lowered, n=1, cutoff=0.6)
    found = longer if len(longer) == 1 else near
    return f"did you mean {lowered[found[0]]}?" if found else ""
