"""Makes batches of encoded rows; pixels are decoded here, in the DataLoader's workers.

A batch is either one row `[1, tokens]`, in which the samples follow one another without padding and
each has positions of its own (packed), or a row for each sample, padded to the longest. The loss is
the same: no sample sees another, and its first token, which nothing predicts, is never a label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sailplan.data.formats import Format
from sailplan.data.image_inputs import ImageInputs
from sailplan.data.images import ImageOpener
from sailplan.data.labels import UNTRAINED
from sailplan.model.families import Family, tokenizer_of
from sailplan.model.positions import Positions

_Ids = NDArray[np.int64]


class Collator:
    """Joins rows of `input_ids` and `labels` to a batch, and adds their images.

    A batch without any image would leave the vision tower out of this rank's step. Where the tower
    is sharded or trained, other ranks then wait for it for ever. So it gets a small black image
    whose tokens stand behind the text and are not trained on: no token of the text attends to them,
    and the loss is the same. Families whose images come in by cross-attention have no such place.

    Args:
        processor: The model's processor, or its tokenizer for a text-only model.
        family: The model's family.
        format: Says which images a row has.
        opener: Opens them.
        positions: Makes the positions of packed rows; None pads.
        dummy_image: Whether batches without images get one.
        pad_to_multiple_of: Pads the length to a multiple of this many tokens.
    """

    def __init__(
        self,
        processor: Any,
        family: Family,
        format: Format,
        opener: ImageOpener,
        *,
        positions: Positions | None = None,
        dummy_image: bool = True,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        self._pixels = ImageInputs(processor, family, format, opener)
        self.positions = positions
        tokenizer = tokenizer_of(processor)
        self._pad_id = tokenizer.pad_token_id
        if self._pad_id is None:  # any will do: what is padding is said by the mask and the labels
            self._pad_id = tokenizer.eos_token_id or 0
        self._dummy_image = dummy_image and self._pixels.has_images and not family.cross_attention
        self._multiple = pad_to_multiple_of or 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns the model's inputs of a batch.

        Args:
            rows: Rows with `input_ids`, `labels`, the format's image columns, `entry`, the entry
                of the data that they are from, where there are several, and `place`, for errors.
                Without any, the batch has nothing to train on, and an image if the data has.

        Returns:
            `input_ids` and `labels`, `[rows, tokens]` padded on the right with an `attention_mask`,
            or `[1, tokens]` with `position_ids`; and what the family's forward takes besides.

        Raises:
            DataError: An image cannot be opened, or is no longer what it was when its tokens were
                counted.
        """
        ids = [np.asarray(row["input_ids"], dtype=np.int64) for row in rows]
        labels = [_without_first(row["labels"]) for row in rows]
        images = [self._pixels.open(row) for row in rows]
        if not rows:
            self._fill(ids, labels, images)
        elif self._dummy_image and not any(images):
            self._add_dummy(ids, labels, images)
        batch = (self._pad if self.positions is None else self._pack)(ids, labels)
        batch |= self._pixels.types(batch)
        if any(images):
            batch |= self._pixels.inputs(images, batch["input_ids"])
        if self.positions is not None:
            lengths, counts = list(map(len, ids)), list(map(len, images))
            if (rest := batch["input_ids"].shape[1] - sum(lengths)) > 0:
                lengths, counts = [*lengths, rest], [*counts, 0]
            batch["position_ids"] = self.positions.of(
                lengths,
                counts,
                batch["input_ids"],
                batch.get("mm_token_type_ids"),
                batch.get("image_grid_thw"),
            )
        return batch

    def _fill(self, ids: list[_Ids], labels: list[_Ids], images: list[list[Any]]) -> None:
        """Makes a row for a rank that has no sample while others have."""
        tokens, of_row = np.array([self._pad_id]), []
        if self._pixels.has_images:
            tokens, image = self._pixels.dummy()
            of_row = [image]
        ids.append(tokens)
        labels.append(np.full(len(tokens), UNTRAINED))
        images.append(of_row)

    def _add_dummy(self, ids: list[_Ids], labels: list[_Ids], images: list[list[Any]]) -> None:
        tokens, image = self._pixels.dummy()
        untrained = np.full(len(tokens), UNTRAINED)
        if self.positions is not None:
            ids.append(tokens)
            labels.append(untrained)
            images.append([image])
            return
        shortest = min(range(len(ids)), key=lambda index: len(ids[index]))
        ids[shortest] = np.concatenate([ids[shortest], tokens])
        labels[shortest] = np.concatenate([labels[shortest], untrained])
        images[shortest] = [image]

    def _pad(self, ids: list[_Ids], labels: list[_Ids]) -> dict[str, torch.Tensor]:
        length = self._rounded(max(map(len, ids)))
        shape = len(ids), length
        padded, targets = np.full(shape, self._pad_id), np.full(shape, UNTRAINED)
        mask = np.zeros(shape, dtype=np.int64)
        for index, (of_row, wanted) in enumerate(zip(ids, labels, strict=True)):
            padded[index, : len(of_row)] = of_row
            targets[index, : len(of_row)] = wanted
            mask[index, : len(of_row)] = 1
        arrays = {"input_ids": padded, "attention_mask": mask, "labels": targets}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _pack(self, ids: list[_Ids], labels: list[_Ids]) -> dict[str, torch.Tensor]:
        rest = self._rounded(total := sum(map(len, ids))) - total
        row = np.concatenate([*ids, np.full(rest, self._pad_id)])
        targets = np.concatenate([*labels, np.full(rest, UNTRAINED)])
        return {"input_ids": torch.from_numpy(row)[None], "labels": torch.from_numpy(targets)[None]}

    def _rounded(self, length: int) -> int:
        return -(-length // self._multiple) * self._multiple


def _without_first(labels: Any) -> _Ids:
    found = np.array(labels, dtype=np.int64)
    found[:1] = UNTRAINED
    return found
