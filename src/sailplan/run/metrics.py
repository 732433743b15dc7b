"""The metrics of a run: a line a record, read as one series whatever was stopped in between."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a run's metrics file, in the order of their steps.

    A line `{"step": N, "resumed": true, …}` says that training went on from step N: what was
    written before it of later steps is of a try that was given up, and is left out. So is a line
    that was cut off.
    """
    kept: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("resumed"):
            kept = [earlier for earlier in kept if earlier["step"] <= record["step"]]
        else:
            kept.append(record)
    return kept


def append_metrics(path: Path, record: dict[str, Any]) -> None:
    """Appends a record to a run's metrics file, with the wall time; for the first rank alone.

    Args:
        path: The file.
        record: What JSON can hold, with its `step`.
    """
    line = json.dumps({**record, "time": round(time.time(), 3)})
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
