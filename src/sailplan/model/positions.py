"""The positions of samples in one row: each begins anew, and images count as the family wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Positions:
    """Makes the position ids of packed rows.

    Families with positions in three dimensions (Qwen's mrope) have a function of their own for
    them, `get_rope_index`, which reads nothing of the model but its config; transformers then wants
    the plain positions as a fourth row before them, or it would not see where samples begin.

    Args:
        config: The model's config.
    """

    def __init__(self, config: Any) -> None:
        from transformers import MODEL_MAPPING

        model_class = MODEL_MAPPING.get(type(config), None)
        self._hollow: Any = None
        if hasattr(model_class, "get_rope_index"):
            self._hollow = model_class.__new__(model_class)
            torch.nn.Module.__init__(self._hollow)
            self._hollow.config = config

    def of(
        self,
        lengths: Sequence[int],
        num_images: Sequence[int],
        input_ids: torch.Tensor,
        types: torch.Tensor | None = None,
        grids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns the position ids of one row.

        Args:
            lengths: Tokens of each sample, in order; together those of the row.
            num_images: Images of each sample.
            input_ids: `[1, tokens]`.
            types: `mm_token_type_ids`, `[1, tokens]`: 0 text, 1 image.
            grids: `image_grid_thw` of the images of the row in order, `[images, 3]`.

        Returns:
            `[1, tokens]`, or `[4, 1, tokens]` where positions have three dimensions.
        """
        plain = torch.cat([torch.arange(length) for length in lengths])[None]
        if self._hollow is None:
            return plain
        deep = plain[None].repeat(4, 1, 1)  # text counts the same in all dimensions
        if types is None or grids is None:
            return deep
        start = image = 0
        for length, count in zip(lengths, num_images, strict=True):
            span = slice(start, start + length)
            if count:
                deep[1:, :, span], _ = self._hollow.get_rope_index(
                    input_ids[:, span],
                    mm_token_type_ids=types[:, span],
                    image_grid_thw=grids[image : image + count],
                )
            start, image = start + length, image + count
        return deep
