"""A rank that tells what it was given, and ends as it is told: for tests of launching several."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main() -> int:
    """Writes down its arguments and variables; ends with the code that is named for its rank."""
    folder, rank, num_ranks = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    told = {"ranks": num_ranks, **{name: os.environ.get(name) for name in names}}
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
    print(f"rank {rank} has\nthese last words", file=sys.stderr, flush=True)
    if os.environ.get("WAITS"):
        time.sleep(60)
    return int(os.environ.get(f"CODE_{rank}", "0"))


if __name__ == "__main__":
    raise SystemExit(main())
