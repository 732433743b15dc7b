"""Sizes and times as users write and read them."""

from __future__ import annotations

import re

from sailplan.errors import RunFileError

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{end}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for end, base in (("B", 1000), ("iB", 1024))
}


def parse_bytes(option: str, written: str) -> int:
    """Returns the bytes of a size such as `5GB`, `400MB` or `2GiB`.

    Raises:
        RunFileError: It is none, or nothing.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGTkmgt]?i?[Bb]?)\s*", written)
    unit = match[2].replace("b", "B").replace("I", "i") if match else "?"
    unit = unit[:1].upper() + unit[1:]
    if match is None or unit not in _UNITS or not float(match[1]):
        raise RunFileError(f"{option} {written}", allowed="a size such as 5GB, 400MB or 2GiB")
    return int(float(match[1]) * _UNITS[unit])


def shown_bytes(count: float) -> str:
    """Returns a size in the unit that suits it, such as `4.9 GB`."""
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """Returns a time in the unit that suits it."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"
