"""What of the matrix of families and methods works: the results of its last whole run.

`make test-matrix` trains a tiny model of each family by each method, kills it, resumes, merges and
reads it back; only a run that tried every cell writes `tested.json` beside this module. Nothing
here is written by hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

RESULTS = Path(__file__).with_suffix(".json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tested:
    """What became of one cell."""

    family: str
    """The family's name, as `Family.name` has it."""
    method: str
    """`full`, `lora`, `qlora` or `int8`; `full-qlora` and `full-int8` train quantised weights."""
    strategy: str
    """`single`, or `ddp`, `zero2` or `zero3` on two ranks."""
    works: bool
    """Whether it trained, came back, merged and read right; else it was refused before training."""
    words: str
    """How its samples were batched, or why it was refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """One whole run of the matrix."""

    versions: dict[str, str | None]
    """Of the libraries that it ran with."""
    cells: tuple[Tested, ...]
    """Every cell, in the order of the matrix."""


@cache
def results() -> Results | None:
    """Returns the results of the last whole run; None where none are recorded."""
    if not RESULTS.is_file():
        return None
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    return Results(
        versions=record["versions"], cells=tuple(Tested(**cell) for cell in record["cells"])
    )
