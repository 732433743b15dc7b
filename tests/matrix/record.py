"""Collects what the cells of a run of the matrix found: `python -m tests.matrix.record FILE`.

Each cell adds a line to the file that SAILPLAN_MATRIX names. Collected they become
`sailplan.model.tested`'s results, but only where none is missing and none failed.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path

from sailplan.imports import installed_versions
from sailplan.model.tested import RESULTS, Tested
from tests.matrix.cells import CELLS, Cell

VARIABLE = "SAILPLAN_MATRIX"
_LIBRARIES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "bitsandbytes"),
    "datasets",
)

_WRITTEN_AT = re.compile(r"^(?:.*\.yaml:\d+|--\w+): ")
"""Where a field was written in the run that was refused; it says nothing of the cell."""


def note(cell: Cell, *, works: bool, words: str) -> None:
    """Adds what became of a cell to the file that the environment names, if it names one."""
    path = os.environ.get(VARIABLE)
    if path:
        found = {"family": cell.family, "method": cell.method, "strategy": cell.strategy}
        with Path(path).open("a") as lines:
            said = _WRITTEN_AT.sub("", words)
            lines.write(json.dumps({**found, "works": works, "words": said}) + "\n")


def collect(path: Path) -> dict[str, object]:
    """Returns the record of a whole run.

    Raises:
        SystemExit: A cell is missing.
    """
    found = [Tested(**json.loads(line)) for line in path.read_text().splitlines()]
    by_name = {f"{cell.family}/{cell.method}/{cell.strategy}": cell for cell in found}
    missing = [cell.name for cell in CELLS if cell.name not in by_name]
    if missing:
        raise SystemExit(f"{len(missing)} cells have no result: {', '.join(missing)}")
    return {
        "versions": installed_versions(_LIBRARIES),
        "cells": [asdict(by_name[cell.name]) for cell in CELLS],
    }


def main() -> None:
    """Writes the results of a whole run to where the package reads them."""
    record = collect(Path(sys.argv[1]))
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(CELLS)} cells written to {RESULTS}")


if __name__ == "__main__":
    main()
