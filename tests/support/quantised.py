"""What bitsandbytes can do on this machine's CPU."""

from __future__ import annotations

from functools import cache


@cache
def dequantises_any_rows() -> bool:
    """Whether 4-bit weights come back right whose rows are not whole blocks of 64.

    On some CPUs bitsandbytes (0.50) reads the scales of other blocks for them, and so trains on
    weights that no merge can give back.
    """
    import torch
    from bitsandbytes import functional

    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = torch.randn(32, 32)
    found = functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4"))
    whole = functional.dequantize_4bit(
        *functional.quantize_4bit(weight.reshape(-1, 64), quant_type="nf4")
    )
    return bool(found.reshape(-1).equal(whole.reshape(-1)))
