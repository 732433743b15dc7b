"""Imports flash-attn, and compares it on a GPU: `python -m sailplan.preflight.probes.flash`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sailplan.preflight.children import answer

TOLERANCE = 0.02


def main() -> None:
    """Answers whether it was tried, and what is wrong; ends with the error of an import."""
    import torch

    flash_attention: Any = import_module("flash_attn").flash_attn_func

    if not torch.cuda.is_available():
        answer(tried=False, trouble="")
        return
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 128, 4, 64, device="cuda", dtype=torch.bfloat16)
    try:
        found = flash_attention(query, key, value, causal=True)
    except RuntimeError as error:
        answer(tried=True, trouble=f"it does not run on this GPU: {str(error).splitlines()[0]}")
        return
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    wrong = float((found - wanted.transpose(1, 2)).abs().max())
    answer(tried=True, trouble="" if wrong < TOLERANCE else f"it computes wrongly, by {wrong:.2g}")


if __name__ == "__main__":
    main()
