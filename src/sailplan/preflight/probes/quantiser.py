"""Loads bitsandbytes and quantises a matrix: `python -m sailplan.preflight.probes.quantiser [LIB]`.

LIB is the CUDA library that a GPU would need; it is loaded too, where there is none.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from pathlib import Path

from sailplan.preflight.children import answer

MOST_WRONG = 0.12
"""The mean error of 4-bit values of a normal distribution, by their mean size: nf4 has 0.09."""


def main() -> None:
    """Answers with the library in use, on what device it was tried, and what is wrong."""
    logging.disable(logging.CRITICAL)  # its own report is forty lines
    import torch
    from bitsandbytes import functional
    from bitsandbytes.cextension import PACKAGE_DIR, lib

    device = "cuda" if torch.cuda.is_available() else "cpu"
    library, load_error = getattr(getattr(lib, "_lib", None), "_name", ""), ""
    if not library:  # a stand-in, which complains when it is used; on the CPU torch steps in
        own = Path(PACKAGE_DIR) / "libbitsandbytes_cpu.so"
        load_error = _load(own) if device == "cpu" else ""
        load_error = load_error or str(getattr(lib, "error_msg", "")) or "no reason given"
    cuda_error = _load(Path(sys.argv[1])) if sys.argv[1:] and not load_error else ""
    trouble = ""
    if not load_error:
        torch.manual_seed(0)
        matrix = torch.randn(256, 256, device=device)
        packed, state = functional.quantize_4bit(matrix, quant_type="nf4")
        back = functional.dequantize_4bit(packed, state)
        wrong = float((back - matrix).abs().mean() / matrix.abs().mean())
        trouble = "" if wrong < MOST_WRONG else f"nf4 is off by {wrong:.0%}"
    answer(
        library=Path(library).name,
        device=device,
        load_error=load_error.replace(str(PACKAGE_DIR) + "/", ""),
        cuda_error=cuda_error,
        trouble=trouble,
    )


def _load(path: Path) -> str:
    """Returns why a library does not load, nothing where it does."""
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main()
