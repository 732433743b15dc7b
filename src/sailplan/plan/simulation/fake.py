"""Running a model without its memory: tensors that have shapes only, each one's life recorded.

Torch's fake tensors go through the real model, forward and backward. Operations that see none of
them (token ids, masks, image grids, positions) run for real, so that code which looks at values
works as well. Every storage that an operation makes is weighed at its birth and at its death.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_REAL_ELEMENTS = 4096
"""Floating point tensors up to this size are made for real where nothing fake goes in."""

_aten = torch.ops.aten


def _cpu_attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    flops: int = sdpa_flop_count(query.shape, key.shape, value.shape)  # type: ignore[no-untyped-call]
    return flops


def _cpu_attention_backward_flops(
    grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any
) -> int:
    shapes = (grad.shape, query.shape, key.shape, value.shape)
    flops: int = sdpa_backward_flop_count(*shapes)  # type: ignore[no-untyped-call]
    return flops


_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default: _cpu_attention_flops,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: (
        _cpu_attention_backward_flops
    ),
}


_INDEXING = (_aten.index, _aten.index_put, _aten.index_put_, _aten._unsafe_index)


def fake_mode() -> FakeTensorMode:
    """Returns the mode under which tensors have no memory."""
    return FakeTensorMode(allow_non_fake_inputs=True)


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Weighs all storages that operations make while it is active.

    Args:
        fake: The mode of the fake tensors.
        known: Tensors that are not to be weighed: parameters and buffers.
        on_growth: Called with the bytes alive whenever they have grown.
    """

    def __init__(
        self,
        fake: FakeTensorMode,
        known: Iterable[torch.Tensor],
        on_growth: Callable[[int], None],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake, self.on_growth = fake, on_growth
        self.live_bytes = 0
        self.cast_bytes = 0
        self.flops = 0.0
        self._weighed: dict[int, tuple[weakref.ref[Any], int, bool]] = {}
        self._known = [tensor.untyped_storage() for tensor in known]
        self._known_ids = {id(storage) for storage in self._known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs one operation, for real or with fake tensors, and weighs what it makes."""
        kwargs = kwargs or {}
        if func._overloadpacket in _INDEXING:
            args = (args[0], _as_numbers(args[1]), *args[2:])
        tensors = [
            leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)
        ]
        if not tensors and _is_large_float(func, args, kwargs):
            with self.fake:
                result = func(*args, **kwargs)
        elif func is _aten._grouped_mm.default and args[0].dtype.itemsize > 2:
            # Experts in float32: torch computes them, but knows the shapes of 16 bits alone.
            half = [tensor.to(torch.bfloat16) for tensor in args[:2]]
            result = func(*half, *args[2:], **kwargs).to(args[0].dtype)
        else:
            result = func(*args, **kwargs)
        self._count(func, args, kwargs, result)
        is_cast = func is _aten._to_copy.default and self._is_known(args[0])
        for leaf in tree_flatten(result)[0]:
            if isinstance(leaf, torch.Tensor):
                self.weigh(leaf, is_cast=is_cast)
        return result

    def weigh(self, tensor: torch.Tensor, *, is_cast: bool = False) -> None:
        """Counts a tensor's storage from now on until it is freed.

        Args:
            tensor: The tensor.
            is_cast: Whether it is a weight in another dtype, as autocast makes and keeps.
        """
        if tensor.device.type == "meta":  # counts for its operations alone
            return
        storage = tensor.untyped_storage()
        identity = id(storage)
        if identity in self._known_ids or identity in self._weighed:
            return
        size = storage.nbytes()
        reference = weakref.ref(storage, functools.partial(self._free, identity))
        self._weighed[identity] = reference, size, is_cast
        self.live_bytes += size
        self.cast_bytes += size * is_cast
        self.on_growth(self.live_bytes)

    def hide(self, tensor: torch.Tensor) -> int:
        """Stops counting a tensor that others account for, and returns its bytes."""
        entry = self._weighed.pop(id(tensor.untyped_storage()), None)
        if entry is None:
            return 0
        storage = entry[0]()
        if storage is not None:
            self._known.append(storage)
            self._known_ids.add(id(storage))
        self.live_bytes -= entry[1]
        self.cast_bytes -= entry[1] * entry[2]
        return entry[1]

    def _free(self, identity: int, _reference: Any) -> None:
        entry = self._weighed.pop(identity, None)
        if entry is not None:
            self.live_bytes -= entry[1]
            self.cast_bytes -= entry[1] * entry[2]

    def _is_known(self, tensor: torch.Tensor) -> bool:
        return id(tensor.untyped_storage()) in self._known_ids

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if func in _ATTENTION:
            flops: Any = _ATTENTION[func]
            self.flops += flops(*args, **kwargs)
        elif func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)


def _is_large_float(func: Any, args: Any, kwargs: Any) -> bool:
    """Says whether a factory would make a tensor that is not worth its memory."""
    dtype = kwargs.get("dtype")
    if dtype is not None and not dtype.is_floating_point:
        return False
    with FakeTensorMode():
        try:
            made = func(*args, **kwargs)
        except Exception:  # it is left to the real one to complain
            return False
    return (
        isinstance(made, torch.Tensor)
        and made.dtype.is_floating_point
        and made.numel() > _REAL_ELEMENTS
    )


def _as_numbers(indices: Any) -> list[Any]:
    """Returns the indices of an indexing operation, real masks as the places that they name.

    How many places a mask names decides on the result's shape, which a fake mask cannot tell.
    """
    numbers: list[Any] = []
    for index in indices:
        if index is not None and index.dtype is torch.bool and not is_fake(index):
            numbers += index.nonzero(as_tuple=True)
        else:
            numbers.append(index)
    return numbers


def is_fake(tensor: torch.Tensor) -> bool:
    """Says whether a tensor has no memory."""
    return isinstance(tensor, FakeTensor)
