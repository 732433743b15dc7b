"""Makes batches of encoded rows; pixels are decoded here, in the DataLoader's workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from sailplan.data.formats import Format
from sailplan.data.images import ImageOpener
from sailplan.data.labels import UNTRAINED
from sailplan.data.media import ImageExpander, process_images
from sailplan.errors import DataError
from sailplan.model.families import Family, tokenizer_of

DUMMY_SIZE = (56, 56)
"""Width and height in pixels of the image that stands in where a batch has none."""


class Collator:
    """Pads rows of `input_ids` and `labels` to a batch, and adds their images.

    A batch without any image would leave the vision tower out of this rank's step. Where the tower
    is sharded or trained, other ranks then wait for it for ever. So it gets a small black image
    whose tokens stand behind the text and are not trained on: no token of the text attends to them,
    and the loss is the same. Families whose images come in by cross-attention have no such place.

    Args:
        processor: The model's processor, or its tokenizer for a text-only model.
        family: The model's family.
        format: Says which images a row has.
        opener: Opens them.
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
        dummy_image: bool = True,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        self._processor, self._family = processor, family
        self._format, self._opener = format, opener
        self._tokenizer = tokenizer_of(processor)
        self._has_images = family.is_vision and bool(format.image_fields)
        self._dummy_image = dummy_image and self._has_images and not family.cross_attention
        self._multiple = pad_to_multiple_of or 1
        self._expander = ImageExpander(processor, family)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns the model's inputs of a batch, padded on the right.

        Args:
            rows: Rows with `input_ids`, `labels`, the format's image columns, `entry`, the entry
                of the data that they are from, where there are several, and `place`, for errors.

        Returns:
            `input_ids`, `attention_mask` and `labels`, `[rows, tokens]`, and what the family's
            forward takes besides.

        Raises:
            DataError: An image cannot be opened, or is no longer what it was when its tokens were
                counted.
        """
        ids = [list(row["input_ids"]) for row in rows]
        labels = [list(row["labels"]) for row in rows]
        images = [self._open(row) for row in rows]
        if self._dummy_image and not any(images):
            shortest = min(range(len(ids)), key=lambda index: len(ids[index]))
            dummy = self._dummy_ids()
            ids[shortest] += dummy
            labels[shortest] += [UNTRAINED] * len(dummy)
            images[shortest] = [Image.new("RGB", DUMMY_SIZE)]
        batch = self._pad(ids, labels)
        if self._has_images:
            batch.update(self._types(batch["input_ids"]))
        if any(images):
            batch.update(self._pixels(images, ids, batch["input_ids"]))
        return batch

    def _open(self, row: Mapping[str, Any]) -> list[Image.Image]:
        if not self._has_images:
            return []
        entry = row.get("entry", 0)
        try:
            return [self._opener.open(reference, entry) for reference in self._format.images(row)]
        except DataError as error:
            raise DataError(f"{row.get('place', 'a row')}: {error}") from error

    def _dummy_ids(self) -> list[int]:
        text = self._expander.replacement(DUMMY_SIZE)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _pad(self, ids: list[list[int]], labels: list[list[int]]) -> dict[str, torch.Tensor]:
        length = -(-max(map(len, ids)) // self._multiple) * self._multiple
        pad_id = self._tokenizer.pad_token_id
        if pad_id is None:  # any will do: what is padding is said by the mask and the labels
            pad_id = self._tokenizer.eos_token_id or 0

        def padded(sequences: list[list[int]], value: int) -> torch.Tensor:
            return torch.tensor([s + [value] * (length - len(s)) for s in sequences])

        return {
            "input_ids": padded(ids, pad_id),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
            "labels": padded(labels, UNTRAINED),
        }

    def _types(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns which tokens are text, image and video, where the family wants to know."""
        names = self._processor.model_input_names
        if not self._processor.return_mm_token_type_ids:
            return {}
        name = "token_type_ids" if "token_type_ids" in names else "mm_token_type_ids"
        types = self._processor.create_mm_token_type_ids(input_ids.tolist())
        return {name: torch.tensor(types)}

    def _pixels(
        self, images: list[list[Image.Image]], ids: list[list[int]], padded_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        # Image processors that want images by sample lose a sample without any at the end
        # (transformers 5.23, `reorder_images`): they get the others, and its place is filled here.
        with_images = [index for index, of_row in enumerate(images) if of_row]
        inputs, replacements = process_images(
            self._processor,
            [images[index] for index in with_images],
            nested=self._family.nested_images,
        )
        token = self._processor.image_token
        expected = sum(text.count(token) for text in replacements)
        token_id = self._tokenizer.convert_tokens_to_ids(token)
        found = sum(row.count(token_id) for row in ids)
        if expected != found:
            raise DataError(
                f"the images of a batch take {expected} tokens, their rows have {found}: an image "
                "was changed after its tokens were counted",
                todo="put it back, or touch the data file so that its rows are encoded anew",
            )
        tiles = iter(inputs.pop("num_tiles", []))
        # What image processors say for counting tokens only is no input of the model.
        names = self._processor.model_input_names
        pixels = {name: torch.as_tensor(v) for name, v in inputs.items() if name in names}
        if self._family.nested_images:
            pixels = {
                name: _in_rows(value, with_images, len(ids), name) for name, value in pixels.items()
            }
        if self._family.cross_attention:
            num_tiles = [next(tiles) if of_row else [] for of_row in images]
            pixels["cross_attention_mask"] = self._cross_attention_mask(padded_ids, num_tiles)
        return pixels

    def _cross_attention_mask(
        self, input_ids: torch.Tensor, num_tiles: list[list[int]]
    ) -> torch.Tensor:
        """Returns which image tiles each token sees, `[rows, tokens, images, tiles]`.

        Args:
            input_ids: The padded ids.
            num_tiles: For each row, the number of tiles of each of its images.
        """
        token_id = self._processor.image_token_id
        sparse = [get_cross_attention_token_mask(row, token_id) for row in input_ids.tolist()]
        dense = convert_sparse_cross_attention_mask_to_dense(
            sparse,
            num_tiles=num_tiles,
            max_num_tiles=self._processor.image_processor.max_image_tiles,
            length=input_ids.shape[1],
        )
        return torch.from_numpy(dense)


def _in_rows(value: torch.Tensor, rows: list[int], num_rows: int, name: str) -> torch.Tensor:
    """Puts what belongs to `rows` into a batch of `num_rows`, the others padded."""
    full = value.new_zeros((num_rows, *value.shape[1:]))
    if name == "aspect_ratio_mask":  # Mllama: padding has one tile, or its attention would be NaN
        full[..., 0] = 1
    full[rows] = value
    return full
