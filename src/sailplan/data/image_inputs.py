"""The images of a batch: opened, and made into what the model's forward takes for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from sailplan.data.formats import Format
from sailplan.data.images import ImageOpener
from sailplan.data.media import ImageExpander, process_images
from sailplan.data.prefix import token_types
from sailplan.errors import DataError
from sailplan.model.families import Family, tokenizer_of

DUMMY_SIZE = (56, 56)
"""Width and height in pixels of the image that stands in where a batch has none."""


class ImageInputs:
    """Makes the pixel inputs of batches.

    Args:
        processor: The model's processor, or its tokenizer for a text-only model.
        family: The model's family.
        format: Says which images a row has.
        opener: Opens them.
    """

    def __init__(self, processor: Any, family: Family, format: Format, opener: ImageOpener) -> None:
        self._processor, self._family = processor, family
        self._format, self._opener = format, opener
        self._tokenizer = tokenizer_of(processor)
        self._expander = ImageExpander(processor, family)
        self.has_images = family.is_vision and bool(format.image_fields)

    def open(self, row: Mapping[str, Any]) -> list[torch.Tensor]:
        """Returns the images of a row.

        Raises:
            DataError: One cannot be opened; the row's place is named.
        """
        if not self.has_images:
            return []
        entry = row.get("entry", 0)
        try:
            return [self._opener.decode(reference, entry) for reference in self._format.images(row)]
        except DataError as error:
            raise DataError(f"{row.get('place', 'a row')}: {error}") from error

    def dummy(self) -> tuple[NDArray[np.int64], Any]:
        """Returns the tokens of a small black image, and the image."""
        text = self._expander.replacement(DUMMY_SIZE)
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return np.asarray(ids, dtype=np.int64), Image.new("RGB", DUMMY_SIZE)

    def types(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns of what kind each token is, where the family wants to know.

        That is text, image or video; of a prefix language model prompt or answer.

        Args:
            batch: The ids, and of a prefix language model the labels and the mask.
        """
        if self._family.prefix_lm:
            return {"token_type_ids": token_types(batch)}
        if not self.has_images or not self._processor.return_mm_token_type_ids:
            return {}
        names = self._processor.model_input_names
        name = "token_type_ids" if "token_type_ids" in names else "mm_token_type_ids"
        types = self._processor.create_mm_token_type_ids(batch["input_ids"].tolist())
        return {name: torch.tensor(types)}

    def inputs(
        self, images: Sequence[Sequence[Any]], input_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Returns what the forward takes for the images of a batch.

        Args:
            images: The images of each sample, one at least.
            input_ids: `[samples, tokens]`, or `[1, tokens]` where all samples share a row.

        Raises:
            DataError: They are no longer what they were when their tokens were counted.
        """
        # Image processors that want images by sample lose a sample without any at the end
        # (transformers 5.23, `reorder_images`): they get the others, and its place is filled here.
        with_images = [index for index, of_row in enumerate(images) if of_row]
        given = [images[index] for index in with_images]
        by_row = self._family.pixels_by_row
        if by_row and len(input_ids) == 1:
            given, with_images = [[image for sample in given for image in sample]], [0]
        inputs, replacements = process_images(
            self._processor, given, nested=self._family.nested_images
        )
        self._check(replacements, input_ids)
        tiles = iter(inputs.pop("num_tiles", []))
        # What image processors say for counting tokens only is no input of the model.
        names = self._processor.model_input_names
        pixels = {name: torch.as_tensor(v) for name, v in inputs.items() if name in names}
        if by_row:
            pixels = {
                name: _in_rows(value, with_images, len(input_ids), name)
                for name, value in pixels.items()
            }
        if self._family.cross_attention:
            num_tiles = [next(tiles) if of_row else [] for of_row in images]
            pixels["cross_attention_mask"] = self._cross_attention_mask(input_ids, num_tiles)
        return pixels

    def _check(self, replacements: Sequence[str], input_ids: torch.Tensor) -> None:
        token = self._family.image_token(self._processor)
        if token is None:  # the model itself then says that they do not fit
            return
        token_id = self._tokenizer.convert_tokens_to_ids(token)
        expected = sum(text.count(token) for text in replacements)
        found = int((input_ids == token_id).sum())
        if expected != found:
            raise DataError(
                f"the images of a batch take {expected} tokens, their rows have {found}: an image "
                "was changed after its tokens were counted",
                todo="put it back, or touch the data file so that its rows are encoded anew",
            )

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
    if len(rows) == num_rows:
        return value
    full = value.new_zeros((num_rows, *value.shape[1:]))
    if name == "aspect_ratio_mask":  # Mllama: padding has one tile, or its attention would be NaN
        full[..., 0] = 1
    full[rows] = value
    return full
