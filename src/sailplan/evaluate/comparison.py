"""A comparison as it is kept: rows, what each side answered to them, and what that is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sailplan.errors import OutputError
from sailplan.files import write_atomically
from sailplan.records import from_json, to_json

Verdict = Literal["better", "worse", "unclear"]
"""Of a change against the base; `unclear` where it may be chance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One of the models that are compared, as it is named and told of."""

    name: str
    """Such as `base`, `tuned` or `checkpoint-100`; the first side of a comparison is its base."""
    model: str
    """The folder or hub name of its whole weights."""
    adapter: str | None = None
    """The folder of an adapter on top of them."""
    words: str = ""
    """What else there is to know, such as `nf4` or `adapter switched off`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one side said to one row."""

    text: str
    num_tokens: int
    """Tokens that were generated, the one that ends the answer among them."""
    ended: bool
    """Whether the model ended it, not the limit of tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLoss:
    """The loss of one side on one row."""

    loss_sum: float
    """Of its trained tokens, added up, in nats."""
    num_tokens: int
    """How many are trained."""
    num_top1: int
    """How many of these are the model's first choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One held-out row with all answers to it."""

    place: str
    """Where a user finds the row, such as `row 3`."""
    prompt: str
    """The question's own words, images as `<image>`."""
    reference: str
    """The answer in the data."""
    images: tuple[str, ...] = ()
    """Names of small copies of its images, in the comparison's folder `images`."""
    answers: Mapping[str, Answer] = field(default_factory=dict)
    """By side; a side that has not answered yet is missing."""
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By side, then by the name of the score, `loss` (of a token) among them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number, and between which it lies with 95 % confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """How a side differs from the base in one score."""

    difference: Estimate
    """The side's value less the base's."""
    p_value: float
    """How likely so large a difference were if the two were alike; paired by rows."""
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One score over all rows."""

    name: str
    """Such as `rouge_l`."""
    better: Literal["higher", "lower", "neither"]
    """Which values are better; `neither` of lengths."""
    num_rows: int
    """Rows that it is taken over."""
    sides: Mapping[str, Estimate]
    """By side."""
    changes: Mapping[str, Change]
    """By side, all but the first, against the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What `sailplan compare` found."""

    sides: tuple[Side, ...]
    rows: tuple[Row, ...]
    """The rows that were answered, in the order of the data."""
    scores: tuple[Score, ...]
    """The most telling first."""
    split: str
    """Where the rows are from."""
    num_held_out: int
    """Rows of that split that could have been taken."""
    num_loss_rows: int
    """Rows over which losses are taken; 0 where they were not asked for."""
    generation: Mapping[str, float]
    """The settings of the answers, as the run file's `generation` has them."""
    made_at: float
    """When, in seconds since 1970."""


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Writes a comparison, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    text = json.dumps(to_json(comparison), ensure_ascii=False, indent=1) + "\n"
    # Lone surrogates, which broken data may hold, are no text.
    write_atomically(path, text.encode("utf-8", errors="replace"))


def read_comparison(path: Path) -> Comparison:
    """Reads a comparison.

    Raises:
        OutputError: It is not there, or is none.
    """
    try:
        return from_json(Comparison, json.loads(path.read_text(encoding="utf-8")))
    except OSError:
        todo = "make one: `sailplan compare RUN`"
        raise OutputError(f"there is no comparison {path}", todo=todo) from None
    except (ValueError, TypeError, KeyError, AttributeError):
        todo = "compare again: `sailplan compare RUN`"
        raise OutputError(f"{path} cannot be read", todo=todo) from None
