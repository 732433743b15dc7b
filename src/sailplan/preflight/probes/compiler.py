"""Builds parts of DeepSpeed as a first start does: `python -m …probes.compiler BUILDER …`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from sailplan.preflight.children import answer


def main() -> None:
    """Answers with where the parts lie, whether they were compiled now, and the seconds."""
    from deepspeed.accelerator import get_accelerator

    start, began = time.monotonic(), time.time()
    files = []
    for name in sys.argv[1:]:
        builder = get_accelerator().create_op_builder(name)
        files.append(Path(builder.load(verbose=False).__file__))
    answer(
        folder=str(files[0].parents[1]),
        compiled=any(file.stat().st_mtime > began for file in files),
        seconds=time.monotonic() - start,
    )


if __name__ == "__main__":
    main()
