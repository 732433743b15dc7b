"""Images on their way into the model: how many tokens each takes, and its pixels.

Everything that counts image tokens or makes pixel values goes through `process_images`, so that
both see the same settings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from sailplan.data import pixels
from sailplan.data.images import PIXEL_LIMIT
from sailplan.data.labels import Span
from sailplan.data.patches import patches
from sailplan.data.token_formula import TokenFormula
from sailplan.data.token_runs import TokenRuns
from sailplan.errors import DataError
from sailplan.model.families import Family, tokenizer_of

Size = tuple[int, int]
"""Width and height in pixels."""

_MAX_KNOWN_SIZES = 4096
"""Of some 20 KB each: data whose every image has another size shall not fill the memory."""


def process_images(
    processor: Any, images: Sequence[Sequence[torch.Tensor | Image.Image]], *, nested: bool
) -> tuple[dict[str, Any], list[str]]:
    """Runs the processor's own image part, without its text part.

    This is the step of `ProcessorMixin.__call__` that makes pixels and writes out placeholders
    (transformers 5); its public call cannot be had without tokenising.

    Args:
        processor: The model's processor.
        images: The images of each sample: bytes `[3, height, width]`, or Pillow's in RGB.
        nested: Whether its image processor wants them by sample.

    Returns:
        The model's inputs, and for each image the text that its placeholder becomes.

    Raises:
        ValueError: The image processor refuses an image of that size.
    """
    kwargs = processor._merge_kwargs(
        tokenizer_init_kwargs=processor.tokenizer.init_kwargs, return_tensors="pt"
    )["images_kwargs"]
    # Others of transformers' image processors, and those that come with a model, expect images.
    if getattr(processor.image_processor, "backend", None) == "torchvision":
        samples: Any = [[_as_tensor(image) for image in sample] for sample in images]
        kwargs["input_data_format"] = "channels_first"  # else guessed, from a width of 3 too
    else:
        samples = [[_as_image(image) for image in sample] for sample in images]
    flat = [image for sample in samples for image in sample]
    if not nested and kwargs.keys() == {"return_tensors", "input_data_format"}:
        inputs = patches(processor.image_processor, flat)
        if inputs is not None:
            numbers = range(len(flat))
            return inputs, [processor.replace_image_token(inputs, image_idx=i) for i in numbers]
    inputs, replacements = processor._process_images(samples if nested else flat, **kwargs)
    return dict(inputs), replacements


def _as_tensor(image: torch.Tensor | Image.Image) -> torch.Tensor:
    return pixels.of_image(image) if isinstance(image, Image.Image) else image


def _as_image(image: torch.Tensor | Image.Image) -> Image.Image:
    return image if isinstance(image, Image.Image) else pixels.as_image(image)


@dataclass(frozen=True, kw_only=True, slots=True)
class Expanded:
    """A text with its images written out, each run of one token as a single one."""

    text: str
    spans: list[Span]
    """The given spans in it."""
    images: list[Span]
    """The spans of its images."""
    lengths: list[int]
    """Of the runs within images, in order: `TokenRuns.unfold` puts them back."""


class ImageExpander:
    """Writes out image placeholders from image sizes alone, each distinct size once.

    A blank image goes through the processor, which is exact where formulas are not. That takes as
    long as an image of that size does, so once the processor's own formula has proven right for
    this processor, it speaks for the sizes that follow (see `TokenFormula`).
    """

    def __init__(self, processor: Any, family: Family) -> None:
        self._processor = processor
        self._family = family
        self._known: dict[tuple[Size, bool], str] = {}
        self.runs = TokenRuns(tokenizer_of(processor), family.untrained_token_ids(processor))
        self._formulas = {among: TokenFormula(processor) for among in (False, True)}

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
            formula = self._formulas[among_others]
            if formula.is_unproven(size):
                formula.prove(lambda probe: self._processed(probe, among_others=among_others))
            text = formula.replacement(size)
            if text is None:
                text = self._processed(size, among_others=among_others)
                formula.learn(size, text)
            self._check_count(size, text)
            if len(self._known) >= _MAX_KNOWN_SIZES:
                self._known.clear()
            self._known[key] = text
        return self._known[key]

    def _processed(self, size: Size, *, among_others: bool) -> str:
        scaled = _scaled_size(self._processor.image_processor, size)
        if math.prod(scaled) > PIXEL_LIMIT:
            raise _refused(
                size,
                f"it would be scaled to {scaled[0]:,}×{scaled[1]:,}, more than {PIXEL_LIMIT:,} in "
                "all, for a square out of its middle",
                todo="crop it, or drop the row",
            )
        blank = [Image.new("RGB", size)] * (2 if among_others else 1)
        try:
            _, replacements = process_images(
                self._processor, [blank], nested=self._family.nested_images
            )
        except ValueError as error:
            raise _refused(size, _reason(error), todo="crop it, or drop the row") from error
        return replacements[0]

    def _check_count(self, size: Size, replacement: str) -> None:
        fewest = self._family.min_image_tokens
        if fewest > 1 and replacement.count(self._processor.image_token) < fewest:
            raise _refused(
                size,
                f"{self._family.name} cannot read one of less than {fewest} tokens",
                todo="scale it up, or drop the row",
            )

    def expand(self, text: str, spans: Sequence[Span], sizes: Sequence[Size]) -> Expanded:
        """Writes out the placeholders of a text, but each run of one token as a single one.

        Args:
            text: A text with one placeholder for each image.
            spans: Character spans of it that begin and end outside of placeholders.
            sizes: The size of each image, in order.

        Raises:
            DataError: There are more or fewer placeholders than images.
        """
        token = getattr(self._processor, "image_token", None)
        if token is None or not self._family.is_vision:  # Gemma 3's tokenizers all name one
            if sizes:
                raise DataError(
                    f"a row with images for {self._family.name}, which sees none",
                    todo="train a vision-language model, or leave the image columns out",
                    kind="images-unseen",
                )
            return Expanded(text=text, spans=list(spans), images=[], lengths=[])
        count = text.count(token)
        if count != len(sizes):
            raise DataError(
                f"{count} image placeholders {token} in the text for {len(sizes)} images",
                todo=f"leave {token} out of the texts: images are placed by their parts",
                kind="placeholder-mismatch",
            )
        written = [self.replacement(size, among_others=len(sizes) > 1) for size in sizes]
        folded = [self.runs.fold(replacement) for replacement in written]
        (expanded,), (found,) = self._processor.get_text_with_replacements(
            [text], [short for short, _ in folded]
        )
        ends = [(image["span"][1], image["new_span"][1]) for image in found]

        def moved(position: int) -> int:
            return position + next((new - old for old, new in reversed(ends) if old <= position), 0)

        return Expanded(
            text=expanded,
            spans=[(moved(start), moved(end)) for start, end in spans],
            images=[image["new_span"] for image in found],
            lengths=[length for _, lengths in folded for length in lengths],
        )


def _refused(size: Size, why: str, *, todo: str) -> DataError:
    return DataError(
        f"the model takes no image of {size[0]}×{size[1]} pixels: {why}",
        todo=todo,
        kind="image-size",
    )


def _scaled_size(image_processor: Any, size: Size) -> Size:
    """Returns the size that an image has on its way through CLIP's image processor.

    It scales the short side to a length and crops a square out of the middle then: 1×4000 pixels
    become 451 million of a LLaVA of 336 (transformers 5.23). Others bound both sides, or the tiles.
    """
    settings = dict(getattr(image_processor, "size", None) or {})
    edge = settings.get("shortest_edge")
    tiles = getattr(image_processor, "image_grid_pinpoints", None)
    squares = getattr(image_processor, "do_pad", None)
    if not edge or settings.get("longest_edge") or tiles or squares:
        return size
    short = min(size)
    return size[0] * edge // short, size[1] * edge // short


def _reason(error: ValueError) -> str:
    """Says why an image processor refuses a size; some fall over the zero that they scale to."""
    if re.search(r"\b(height|width)=0\b", str(error)):
        return "it is so long that, scaled down, less than a pixel of its short side is left"
    return str(error)
