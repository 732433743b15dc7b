"""What a plan knows of a run's rows: how many, how long, and with which images."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFacts:
    """The rows that are trained on, by a sample of them or by assumption."""

    rows: int | None
    """Their number; None where the data is not at hand."""
    lengths: tuple[int, ...]
    """Tokens of each sampled row, image tokens among them, in the order of the rows; one at least.
    """
    trained_share: float
    """Of all tokens, those with a label."""
    images_per_row: int
    """The most that a row has."""
    image_height: int
    """Pixels, of the image that takes most tokens; 0 where there are none."""
    image_width: int
    sampled: int
    """Rows that were read for it; 0 where all of this is assumed."""
    image_tokens: tuple[int, ...] = ()
    """Of each sampled row, those that stand for images; empty where that is not known."""
    largest_image_tokens: int = 0
    """Of one image, the most; 0 where that is not known."""
    patches_per_token: float = 1.0
    """What the vision tower sees for each of them."""
    notes: tuple[str, ...] = ()
    """What was assumed, one line each."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths)

    @property
    def whole(self) -> bool:
        """Whether the sampled rows are all that there are."""
        return self.rows == len(self.lengths)

    @property
    def mean(self) -> float:
        """Tokens of a row on average."""
        return sum(self.lengths) / len(self.lengths)

    def padded(self, micro_batch: int, *, grouped: bool = False) -> float:
        """Returns how long the rows of a micro batch are on average, padded to its longest.

        Args:
            micro_batch: Rows that are drawn at random.
            grouped: Whether rows of like length are drawn together instead.
        """
        if grouped:
            return self.mean
        count = len(self.lengths)
        expected = 0.0
        for index, length in enumerate(sorted(self.lengths)):
            reaches = ((index + 1) / count) ** micro_batch - (index / count) ** micro_batch
            expected += length * reaches
        return expected
