"""What each kind of adapter does to a weight, some rows at a time, bit for bit as PEFT does it.

The rules are those of peft 0.21: adapters are float32 whatever they are saved in, the product is
added to the weight in float32, and the sum is rounded once. Two layers round the product first
(embeddings, and experts' parameters), which is done here as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from sailplan.checkpoint.stored import Pieces
from sailplan.errors import CheckpointError
from sailplan.merge.reader import Reader
from sailplan.merge.tensor_plan import TensorPlan

_FEWEST_ROWS = 64
_IN_MEMORY = 4
"""Tensors of an adapter that are kept: the two of each of two neighbouring weights."""


@lru_cache(maxsize=_IN_MEMORY)
def _read(pieces: Pieces) -> torch.Tensor:
    with Reader() as reader:
        return reader.read(pieces.segments).reshape(pieces.shape).float()


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank:
    """`W + (B @ A) * scaling`, of a linear layer or an embedding."""

    reads: Mapping[str, Pieces]
    """A and B by their names."""
    a: Pieces
    """`[rank, in]`."""
    b: Pieces
    """`[out, rank]`."""
    scaling: float
    """What the product is multiplied with."""
    transposed: bool = False
    """Whether the weight is `[in, out]`, as an embedding's."""
    rounded: str | None = None
    """The dtype that the product is rounded to before it is added, if to any."""
    magnitude: Pieces | None = None
    """DoRA's length of each row, `[out]`."""

    @property
    def columns(self) -> int:
        """The elements of a row of the weight."""
        return self.b.shape[0] if self.transposed else self.a.shape[1]

    def rows(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        """Returns rows of the merged weight, in float32."""
        end = start + len(weight)
        a, b = _read(self.a), _read(self.b)
        if self.transposed:
            low, high = _widened(start, end, a.shape[1])
            product = (b @ a[:, low:high]).T
        else:
            low, high = _widened(start, end, b.shape[0])
            product = b[low:high] @ a
        product = product[start - low : end - low].mul_(self.scaling)
        merged = _rounded(product, self.rounded).add_(weight)
        if self.magnitude is None:
            return merged
        factor: torch.Tensor = _read(self.magnitude)[start:end] / torch.linalg.norm(merged, dim=1)
        return factor.view(-1, 1) * merged


@dataclass(frozen=True, kw_only=True, slots=True)
class Experts:
    """The same for each expert of a parameter `[experts, out, in]`, or `[experts, in, out]`."""

    reads: Mapping[str, Pieces]
    """A and B by their names."""
    a: Pieces
    """`[experts * rank, in]`, the rank fastest."""
    b: Pieces
    """`[out, rank * experts]`, the expert fastest."""
    scaling: float
    """What the products are multiplied with."""
    shape: tuple[int, int, int]
    """The parameter's."""
    transposed: bool
    """Whether it is `[experts, in, out]`."""
    rounded: str | None
    """The dtype that the products are rounded to before they are added."""

    @property
    def columns(self) -> int:
        """The elements of a row of one expert's matrix."""
        return self.shape[2]

    def rows(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        """Returns rows of the merged parameter, counted over all experts, in float32."""
        experts, height, _ = self.shape
        a = _read(self.a)
        a = a.reshape(experts, -1, a.shape[-1])
        b = _read(self.b)
        b = b.reshape(b.shape[0], -1, experts)
        products: list[torch.Tensor] = []
        first, end = start, start + len(weight)
        while first < end:
            expert, row = divmod(first, height)
            last = min(row + end - first, height)
            low, high = _widened(row, last, height)
            if self.transposed:
                product = (b[:, :, expert] @ a[expert][:, low:high]).T
            else:
                product = b[low:high, :, expert] @ a[expert]
            products.append(product[row - low : last - low])
            first += last - row
        product = torch.cat(products).mul_(self.scaling)
        return _rounded(product, self.rounded).add_(weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class Convolution:
    """The same of a convolution, `[out, in, …]`, which is computed as a whole."""

    reads: Mapping[str, Pieces]
    """A and B by their names."""
    a: Pieces
    """`[rank, in, …]`."""
    b: Pieces
    """`[out, rank, 1, …]`."""
    scaling: float
    """What the product is multiplied with."""
    shape: tuple[int, ...]
    """The weight's."""

    @property
    def columns(self) -> int:
        """The whole weight."""
        return math.prod(self.shape)

    def rows(self, weight: torch.Tensor, start: int) -> torch.Tensor:  # noqa: ARG002
        """Returns the merged weight as one row, in float32."""
        a, b = _read(self.a), _read(self.b)
        if self.shape[2:] == (1, 1):
            product = (b.flatten(1) @ a.flatten(1)).reshape(self.shape) * self.scaling
        else:
            convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[len(self.shape) - 3]
            product = convolve(a.transpose(0, 1), b).transpose(0, 1) * self.scaling
        return weight.float() + product.reshape(weight.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class AddedBias:
    """`bias + B.bias * scaling`."""

    reads: Mapping[str, Pieces]
    """B's bias by its name."""
    bias: Pieces
    """`[out]`."""
    scaling: float
    """What it is multiplied with."""

    columns = 1

    def rows(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        """Returns some elements of the merged bias, each as a row, in float32."""
        added = _read(self.bias)[start : start + len(weight)] * self.scaling
        return weight.float() + added.view(-1, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Rows of an embedding that were trained by themselves."""

    reads: Mapping[str, Pieces]
    """The rows by their name."""
    trained: Pieces
    """`[tokens, columns]`."""
    indices: Sequence[int]
    """Which rows they are."""

    @property
    def columns(self) -> int:
        """The elements of a row."""
        return self.trained.shape[1]

    def rows(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        """Returns rows of the weight, the trained ones in their places."""
        end = start + len(weight)
        here = [(place, row) for place, row in enumerate(self.indices) if start <= row < end]
        if not here:
            return weight
        merged = weight.float()
        trained = _read(self.trained)
        for place, row in here:
            merged[row - start] = trained[place]
        return merged


def grown(plan: TensorPlan, rows: int, trained: set[int]) -> TensorPlan:
    """Returns an embedding with rows for added tokens, which the adapter brings.

    Raises:
        CheckpointError: It does not bring all of them.
    """
    missing = rows - plan.shape[0]
    if missing <= 0:
        return plan
    left = sorted(set(range(plan.shape[0], rows)) - trained)
    if left:
        raise CheckpointError(
            f"the adapter has no rows for {len(left)} added tokens, such as {left[0]}",
            todo="train it again with all of them",
        )
    segments = plan.source.segments
    one = replace(segments[0], count=plan.shape[1])  # is replaced, as all new rows are
    source = Pieces(shape=(rows, *plan.shape[1:]), segments=(*segments, *[one] * missing))
    return replace(plan, source=source)


def _widened(start: int, end: int, size: int) -> tuple[int, int]:
    """Returns a range with some more rows where it has few.

    A product of a few rows is summed up in another order than one of many (MKL 2024): its last bits
    would not be those of the product as a whole, which PEFT computes.
    """
    missing = max(0, _FEWEST_ROWS - (end - start))
    high = min(size, end + missing)
    return max(0, min(start, high - _FEWEST_ROWS)), high


def _rounded(product: torch.Tensor, dtype: str | None) -> torch.Tensor:
    return product if dtype in (None, "float32") else product.to(getattr(torch, dtype)).float()
