"""bitsandbytes' linear layers without memory: the same lifetimes, none of the kernels."""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

_BLOCK = 64
"""Weights that share one scale (bitsandbytes' default)."""
_NESTED_BLOCK = 256
"""Scales that share one scale of their own, with double quantisation."""


def quantised_bytes(elements: int, quantization: str, *, double: bool, rows: int) -> int:
    """Returns what a quantised matrix takes on the device, its scales and tables among it.

    Args:
        elements: Of the matrix.
        quantization: `nf4`, `fp4` or `int8`.
        double: Whether the scales of 4-bit weights are quantised too.
        rows: Of the matrix; 8-bit weights have a scale for each.
    """
    if quantization == "int8":
        return elements + 4 * rows
    blocks = -(-elements // _BLOCK)
    tables = 16 * 4
    if not double:
        return elements // 2 + 4 * blocks + tables
    return elements // 2 + blocks + 4 * -(-blocks // _NESTED_BLOCK) + 256 * 4 + 4 + tables


class _Product(torch.autograd.Function):
    """`x @ W.T` with a W that is unpacked for the product alone, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: tuple[int, int], keeps_input: bool) -> Any:
        ctx.shape = shape
        if keeps_input:  # int8: the input is quantised, and kept as it came
            ctx.save_for_backward(x)
            _ = torch.empty(x.shape, dtype=torch.int8)
        return x @ torch.empty(shape, dtype=x.dtype).t()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad @ torch.empty(ctx.shape, dtype=grad.dtype), None, None


class _Quantised:
    """What both kinds share: a packed weight that the profile can weigh."""

    plan_bytes: int
    plan_elements: int

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        device = "cpu"
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        y: torch.Tensor = _Product.apply(
            x, (self.out_features, self.in_features), self.plan_keeps_input
        )
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Linear4bit(_Quantised, bnb.nn.Linear4bit):
    plan_keeps_input = False


class _Linear8bit(_Quantised, bnb.nn.Linear8bitLt):
    plan_keeps_input = True


def quantise(model: Any, quantization: str, *, double: bool) -> None:
    """Replaces the layers that bitsandbytes would quantise, by transformers' own choice of them.

    Args:
        model: Changed in place; PEFT then takes it for a quantised one.
        quantization: `nf4`, `fp4` or `int8`.
        double: Whether the scales of 4-bit weights are quantised too.
    """
    kept = get_keys_to_not_convert(model)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and should_convert_module(name, kept):
            model.set_submodule(name, _stand_in(module, quantization, double=double))
    model.is_loaded_in_8bit = quantization == "int8"
    model.is_loaded_in_4bit = not model.is_loaded_in_8bit
    model.is_quantized = True


def _stand_in(layer: nn.Linear, quantization: str, *, double: bool) -> Any:
    module: Any
    elements = layer.weight.numel()
    if quantization == "int8":
        module = _Linear8bit.__new__(_Linear8bit)
        packed, dtype = elements, torch.int8
    else:
        module = _Linear4bit.__new__(_Linear4bit)
        packed, dtype = -(-elements // 2), torch.uint8
    nn.Module.__init__(module)
    module.in_features, module.out_features = layer.in_features, layer.out_features
    module.bias = layer.bias
    device = layer.weight.device
    weight: Any = nn.Parameter(
        torch.empty(packed, 1, dtype=dtype, device=device), requires_grad=False
    )
    weight.compress_statistics, weight.quant_type = double, quantization
    weight.plan_elements = elements
    weight.plan_bytes = quantised_bytes(
        elements, quantization, double=double, rows=layer.out_features
    )
    module.weight = weight
    module.compute_dtype, module.index = layer.weight.dtype, None
    if quantization == "int8":
        module.state = bnb.MatmulLtState()
        module.state.has_fp16_weights, module.state.threshold = False, 6.0
    if module.bias is not None:
        module.bias.requires_grad_(False)
    return module
