"""Imports torch and multiplies on every GPU: `python -m sailplan.preflight.probes.torch`."""

from __future__ import annotations

import re
import time
from typing import Any

from sailplan.preflight.children import answer

SIZE = 512
TOLERANCE = 0.05
"""Of products of bfloat16, relative to the largest."""


def main() -> None:
    """Answers with what torch sees, and what is wrong with it."""
    start = time.monotonic()
    import torch

    imports_s = time.monotonic() - start
    count = torch.cuda.device_count()
    trouble = ""
    try:
        for index in range(count):
            trouble = trouble or _trouble(torch, index)
        if not count:
            torch.cuda.init()  # type: ignore[no-untyped-call]  # it says why
    except (RuntimeError, AssertionError) as error:
        trouble = str(error).splitlines()[0]
    library: Any = torch.cuda.nccl
    nccl = ".".join(map(str, library.version())) if torch.cuda.is_available() else ""
    answer(imports_s=imports_s, count=count, nccl=nccl, trouble=trouble)


def _trouble(torch: Any, index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    built_for = [
        int(number) // 10 for number in re.findall(r"_(\d+)", str(torch.cuda.get_arch_list()))
    ]
    if built_for and major < min(built_for):
        return f"GPU {index} is sm_{major}{minor}, older than what torch was built for"
    matrix = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    there = matrix.to(f"cuda:{index}", torch.bfloat16 if major >= 8 else torch.float32)
    product, wanted = (there @ there).float().cpu(), matrix @ matrix
    wrong = float((product - wanted).abs().max() / wanted.abs().max())
    return f"GPU {index} multiplies wrongly, by {wrong:.1%}" if wrong > TOLERANCE else ""


if __name__ == "__main__":
    main()
