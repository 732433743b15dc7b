"""Jobs' records, as Slurm prints them."""

from __future__ import annotations

import re

KEY = re.compile(r"(?:^| )([A-Z][A-Za-z0-9/:_]*)=")

ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
)
"""States that a job doesn't leave, unless it is queued again."""


def parse_record(text: str) -> dict[str, str]:
    """The fields of what `scontrol -o` prints; of a key that comes twice, the first."""
    text = text.strip()
    keys = list(KEY.finditer(text))
    ends = [key.start() for key in keys[1:]] + [len(text)]
    record: dict[str, str] = {}
    for key, end in zip(keys, ends, strict=True):
        record.setdefault(key.group(1), text[key.end() : end])
    return record
