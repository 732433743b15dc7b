"""What the merged model will consist of, tensor by tensor, before a byte is written.

Whatever the input is, it becomes a list of `TensorPlan`: copying, casting, cutting, fusing and
permuting rows are all lists of segments; only adapter arithmetic is a delta.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sailplan.checkpoint.stored import ITEM_BYTES, Pieces, Segment
from sailplan.errors import CheckpointError

if TYPE_CHECKING:
    import torch


class Delta(Protocol):
    """What an adapter makes of a weight, some rows at a time."""

    @property
    def reads(self) -> Mapping[str, Pieces]:
        """The adapter's tensors that it takes, by their names in the adapter's file."""

    @property
    def columns(self) -> int:
        """The elements of a row: what must be in memory at once, and divides the tensor's."""

    def rows(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        """Returns rows of the merged weight.

        Args:
            weight: Rows of the base's weight, `[rows, columns]`, in its own dtype.
            start: The number of the first of them, of all rows of the tensor.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlan:
    """One tensor of the output."""

    name: str
    """Its name in the output."""
    dtype: str
    """torch's name of its dtype in the output."""
    source: Pieces
    """Where its elements lie, before any delta."""
    delta: Delta | None = None
    """What an adapter adds."""
    replaced_by: tuple[str, ...] = ()
    """The names of the adapter's tensors that stand in the place of the base's."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.source.shape

    @property
    def num_bytes(self) -> int:
        """Its bytes in the output."""
        return self.source.numel * ITEM_BYTES[self.dtype]

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are those of its segments."""
        return self.delta is None and all(s.dtype == self.dtype for s in self.source.segments)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file of the output."""

    name: str
    """The file's name."""
    tensors: tuple[TensorPlan, ...]
    """Its tensors, in the order of the model."""

    @property
    def num_bytes(self) -> int:
        """The bytes of its tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors)


def prove(plans: Sequence[TensorPlan]) -> None:
    """Proves that each element of the output comes from one place.

    Args:
        plans: The tensors of the output.

    Raises:
        CheckpointError: An output is covered twice or not at all, or a segment lies outside its
            file.
    """
    names: set[str] = set()
    sizes: dict[Path, int] = {}
    for plan in plans:
        if plan.name in names:
            raise CheckpointError(f"two tensors would be called {plan.name}")
        names.add(plan.name)
        found = sum(segment.count for segment in plan.source.segments)
        if found != plan.source.numel:
            raise CheckpointError(
                f"{plan.name} of shape {plan.shape} takes {plan.source.numel} elements, {found} "
                "are there"
            )
        for segment in plan.source.segments:
            _check_inside(segment, sizes)


def prove_used_up(plans: Sequence[TensorPlan], adapter: Iterable[str]) -> None:
    """Proves that each tensor of an adapter goes into one weight.

    Args:
        plans: The weights of the modules. In the layout of files, one may have become several.
        adapter: The names of all tensors in the adapter's file.

    Raises:
        CheckpointError: One goes nowhere, or into two.
    """
    used: dict[str, str] = {}
    for plan in plans:
        for name in (*plan.replaced_by, *(plan.delta.reads if plan.delta else ())):
            if name in used:
                raise CheckpointError(
                    f"the adapter's {name} would go into {used[name]} and {plan.name}"
                )
            used[name] = plan.name
    left = sorted(set(adapter) - used.keys())
    if left:
        raise CheckpointError(
            f"{len(left)} of the adapter's tensors match nothing in the base, such as {left[0]}",
            todo="name the base that it was trained on: --base",
        )


def _check_inside(segment: Segment, sizes: dict[Path, int]) -> None:
    if segment.file not in sizes:
        try:
            sizes[segment.file] = segment.file.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{segment.file} cannot be read: {error.strerror}") from error
    if segment.offset + segment.num_bytes > sizes[segment.file]:
        raise CheckpointError(
            f"{segment.file} ends at byte {sizes[segment.file]}, within a tensor",
            todo="the file is cut off: get it again",
        )


def shard(plans: Sequence[TensorPlan], max_bytes: int) -> list[Shard]:
    """Deals tensors to files in order, as `save_pretrained` does (huggingface_hub's splitting).

    A file is full where the next tensor would exceed the limit; a tensor larger than the limit has
    a file of its own. One file is `model.safetensors`, several are numbered.
    """
    files: list[list[TensorPlan]] = []
    current: list[TensorPlan] = []
    current_bytes = 0
    for plan in plans:
        if plan.num_bytes > max_bytes:
            files.append([plan])
            continue
        if current and current_bytes + plan.num_bytes > max_bytes:
            files.append(current)
            current, current_bytes = [], 0
        current.append(plan)
        current_bytes += plan.num_bytes
    if current:
        files.append(current)
    if len(files) == 1:
        return [Shard(name="model.safetensors", tensors=tuple(files[0]))]
    return [
        Shard(name=f"model-{number:05d}-of-{len(files):05d}.safetensors", tensors=tuple(tensors))
        for number, tensors in enumerate(files, start=1)
    ]
