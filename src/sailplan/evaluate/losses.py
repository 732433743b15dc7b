"""The loss of a model on held-out rows: what training's evaluation measures, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from sailplan.evaluate.comparison import RowLoss

if TYPE_CHECKING:
    import datasets
    import torch


def row_losses(
    model: Any,
    collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]],
    rows: datasets.Dataset,
    *,
    batch_size: int = 8,
    autocast: torch.dtype | None = None,
) -> Iterator[tuple[int, RowLoss]]:
    """Yields the index of each row and the model's loss on it, the longest rows first.

    Rows of like length are computed together, which changes no row's loss.

    Args:
        model: The model, in evaluation mode, wrapped by PEFT or not.
        collate: Makes the batches: a `Collator`.
        rows: Encoded rows, as `prepare` returns them.
        batch_size: Rows of a batch.
        autocast: The dtype of the run's mixed precision; None computes in that of the weights.

    Raises:
        DataError: An image cannot be opened, or is no longer what it was.
    """
    import torch

    from sailplan.data.loss_inputs import LossInputs, take_out
    from sailplan.data.token_rows import column
    from sailplan.model.families import family_of
    from sailplan.model.head import label_losses

    if family_of(model.config).cross_attention:
        # Tokens before the first image see all image places alike, those that only pad too.
        batch_size = 1
    device, dtype = model.device, model.dtype
    collator = LossInputs(collate=collate)
    lengths = column(rows, "length").tolist()
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = collator([rows[index] for index in indices])
        taken = take_out(batch)
        labels = batch.pop("shift_labels")[0]
        del batch["labels"]
        inputs = {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in batch.items()
        }
        mixed = torch.autocast(device.type, autocast) if autocast else nullcontext()
        with torch.inference_mode(), mixed:
            losses, firsts = label_losses(
                model, inputs, taken.positions.to(device), labels.to(device)
            )
        yield from zip(indices, _of_rows(losses, firsts, labels, taken), strict=True)


def _of_rows(losses: Any, firsts: Any, labels: Any, taken: Any) -> list[RowLoss]:
    """Adds up what was found of the labels of each row."""
    import torch

    from sailplan.data.labels import UNTRAINED

    found = torch.stack([losses.cpu().double(), labels != UNTRAINED, firsts.cpu().double()], dim=1)
    sums = found.new_zeros(taken.num_rows, 3).index_add(0, taken.label_rows, found)
    return [
        RowLoss(loss_sum=loss, num_tokens=int(tokens), num_top1=int(firsts))
        for loss, tokens, firsts in sums.tolist()
    ]
