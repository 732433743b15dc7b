"""Images on their way into the model: how many tokens each takes, and its pixels.

Everything that counts image tokens or makes pixel values goes through `process_images`, so that
both see the same settings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from PIL import Image

from sailplan.data.labels import Span
from sailplan.errors import DataError
from sailplan.model.families import Family

Size = tuple[int, int]
"""Width and height in pixels."""

_MAX_KNOWN_SIZES = 4096
"""Of some 20 KB each: data whose every image has another size shall not fill the memory."""


def process_images(
    processor: Any, images: Sequence[Sequence[Image.Image]], *, nested: bool
) -> tuple[dict[str, Any], list[str]]:
    """Runs the processor's own image part, without its text part.

    This is the step of `ProcessorMixin.__call__` that makes pixels and writes out placeholders
    (transformers 5); its public call cannot be had without tokenising.

    Args:
        processor: The model's processor.
        images: The images of each sample.
        nested: Whether its image processor wants them by sample.

    Returns:
        The model's inputs, and for each image the text that its placeholder becomes.
    """
    kwargs = processor._merge_kwargs(
        tokenizer_init_kwargs=processor.tokenizer.init_kwargs, return_tensors="pt"
    )["images_kwargs"]
    flat = [image for sample in images for image in sample]
    batch: Any = [list(sample) for sample in images] if nested else flat
    inputs, replacements = processor._process_images(batch, **kwargs)
    return dict(inputs), replacements


class ImageExpander:
    """Writes out image placeholders from image sizes alone, each distinct size once.

    A blank image goes through the processor, which is exact where formulas are not.
    """

    def __init__(self, processor: Any, family: Family) -> None:
        self._processor = processor
        self._family = family
        self._known: dict[tuple[Size, bool], str] = {}

    def replacement(self, size: Size, *, among_others: bool = False) -> str:
        """Returns the text that the placeholder of an image of that size becomes.

        Args:
            size: Width and height in pixels.
            among_others: Whether its sample has other images: some processors then cut it into
                fewer tiles.

        Raises:
            DataError: The image processor refuses images of that size.
        """
        key = (size, among_others)
        if key not in self._known:
            blank = [Image.new("RGB", size)] * (2 if among_others else 1)
            try:
                _, replacements = process_images(
                    self._processor, [blank], nested=self._family.nested_images
                )
            except ValueError as error:
                raise DataError(
                    f"the model takes no image of {size[0]}×{size[1]} pixels: {_reason(error)}",
                    todo="crop it, or drop the row",
                ) from error
            self._check_count(size, replacements[0])
            if len(self._known) >= _MAX_KNOWN_SIZES:
                self._known.clear()
            self._known[key] = replacements[0]
        return self._known[key]

    def _check_count(self, size: Size, replacement: str) -> None:
        fewest = self._family.min_image_tokens
        if fewest > 1 and replacement.count(self._processor.image_token) < fewest:
            raise DataError(
                f"the model takes no image of {size[0]}×{size[1]} pixels: {self._family.name} "
                f"cannot read one of less than {fewest} tokens",
                todo="scale it up, or drop the row",
            )

    def expand(
        self, text: str, spans: Sequence[Span], sizes: Sequence[Size]
    ) -> tuple[str, list[Span], list[Span]]:
        """Writes out the placeholders of a text.

        Args:
            text: A text with one placeholder for each image.
            spans: Character spans of it that begin and end outside of placeholders.
            sizes: The size of each image, in order.

        Returns:
            The text, the spans in it, and the spans of its images.

        Raises:
            DataError: There are more or fewer placeholders than images.
        """
        token = getattr(self._processor, "image_token", None)
        if token is None:
            if sizes:
                raise DataError(
                    f"a row with images for {self._family.name}, which sees none",
                    todo="train a vision-language model, or leave the image columns out",
                )
            return text, list(spans), []
        count = text.count(token)
        if count != len(sizes):
            raise DataError(
                f"{count} image placeholders {token} in the text for {len(sizes)} images",
                todo=f"leave {token} out of the texts: images are placed by their parts",
            )
        replacements = [self.replacement(size, among_others=len(sizes) > 1) for size in sizes]
        (expanded,), (found,) = self._processor.get_text_with_replacements([text], replacements)
        ends = [(image["span"][1], image["new_span"][1]) for image in found]

        def moved(position: int) -> int:
            return position + next((new - old for old, new in reversed(ends) if old <= position), 0)

        return (
            expanded,
            [(moved(start), moved(end)) for start, end in spans],
            [image["new_span"] for image in found],
        )


def _reason(error: ValueError) -> str:
    """Says why an image processor refuses a size; some fall over the zero that they scale to."""
    if re.search(r"\b(height|width)=0\b", str(error)):
        return "it is so long that, scaled down, less than a pixel of its short side is left"
    return str(error)
