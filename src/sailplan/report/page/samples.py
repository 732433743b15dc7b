"""The rows of a comparison as the page shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sailplan.evaluate.comparison import Comparison, Row
from sailplan.report.page.differences import Part, differences
from sailplan.report.page.numbers import is_main
from sailplan.run.paths import RunPaths

_FOLDED_CHARACTERS = 700
_FOLDED_LINES = 14
"""Longer texts are folded."""

_ALL_CHARACTERS = 1_200_000
"""Of all texts of a page together; where they have more, the longest are cut."""
_LEAST, _MOST = 2_000, 20_000
"""Characters of a text that are shown at least, and at most."""

_ALIKE = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A text of others."""

    parts: tuple[Part, ...]
    """One, where it is not compared."""
    num_left_out: int
    """Characters behind its shown ones."""
    is_long: bool
    """Whether it is folded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One score of one answer."""

    name: str
    value: float
    change: float | None
    """Against the base's answer; None of the base's own."""
    gain: float | None
    """How much better it is, negative where it is worse; None where neither is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a side answered."""

    side: str
    number: int
    """Of the side; 0 is the base."""
    text: Text | None
    """None where it has not answered yet."""
    is_compared: bool
    """Whether the text's parts say how it differs from the reference."""
    is_exact: bool
    """Whether it is the reference, but for spaces around it."""
    is_empty: bool
    """Whether it said nothing but spaces."""
    num_tokens: int
    ended: bool
    marks: tuple[Mark, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A row with all answers to it."""

    place: str
    prompt: Text
    reference: Text
    images: tuple[str, ...]
    """Files, in the run's directory."""
    answers: tuple[Said, ...]
    """Of all sides, in their order."""
    longest: int
    """Characters of its longest answer."""


def compared_image(name: str) -> str:
    """Returns where a small picture of a comparison lies in a run's directory."""
    return (RunPaths(Path()).comparison_images / name).as_posix()


def limit_of(num_texts: int) -> int:
    """Returns how many characters of each text are shown, so that the file stays small."""
    return min(_MOST, max(_LEAST, _ALL_CHARACTERS // max(1, num_texts)))


def samples(comparison: Comparison) -> tuple[Sample, ...]:
    """Returns the rows of a comparison in the order of the data."""
    limit = limit_of(len(comparison.rows) * (len(comparison.sides) + 2))
    signs = {"higher": 1, "lower": -1, "neither": 0}
    directions = {score.name: signs[score.better] for score in comparison.scores}
    return tuple(_sample(row, comparison, directions, limit) for row in comparison.rows)


def _sample(row: Row, comparison: Comparison, directions: Mapping[str, int], limit: int) -> Sample:
    base = comparison.sides[0].name if comparison.sides else ""
    return Sample(
        place=row.place,
        prompt=shown(row.prompt, limit),
        reference=shown(row.reference, limit),
        images=tuple(compared_image(name) for name in row.images),
        answers=tuple(
            _said(row, side.name, number, base, directions, limit)
            for number, side in enumerate(comparison.sides)
        ),
        longest=max((len(answer.text) for answer in row.answers.values()), default=0),
    )


def _said(
    row: Row, side: str, number: int, base: str, directions: Mapping[str, int], limit: int
) -> Said:
    answer = row.answers.get(side)
    marks = tuple(_marks(row, side, base if number else None, directions))
    if answer is None:
        return Said(
            side=side,
            number=number,
            text=None,
            is_compared=False,
            is_exact=False,
            is_empty=False,
            num_tokens=0,
            ended=True,
            marks=marks,
        )
    text, is_compared = compared(answer.text, row.reference, limit)
    return Said(
        side=side,
        number=number,
        text=text,
        is_compared=is_compared,
        is_exact=answer.text.strip() == row.reference.strip(),
        is_empty=not answer.text.strip(),
        num_tokens=answer.num_tokens,
        ended=answer.ended,
        marks=marks,
    )


def _marks(row: Row, side: str, base: str | None, directions: Mapping[str, int]) -> Iterator[Mark]:
    """Yields the main scores of an answer, those first that the comparison has first."""
    found = {name: value for name, value in row.scores.get(side, {}).items() if is_main(name)}
    against = row.scores.get(base, {}) if base is not None else {}
    for name in sorted(found, key=list({**directions, **found}).index):
        change = found[name] - against[name] if name in against else None
        sign = directions.get(name, 0)
        gain = None if change is None or not sign else sign * change
        if gain is not None and abs(gain) < _ALIKE:
            gain = 0.0
        yield Mark(name=name, value=found[name], change=change, gain=gain)


def compared(answer: str, reference: str, limit: int) -> tuple[Text, bool]:
    """Returns an answer with its differences from the reference, and whether it has any.

    An answer is not compared where it is too long to show or to compare whole, or where there is
    nothing to compare it with.
    """
    answer, reference = _lines(answer), _lines(reference)
    if reference.strip() and max(len(answer), len(reference)) <= limit:
        parts = differences(answer, reference)
        if parts is not None:
            return Text(parts=parts, num_left_out=0, is_long=_is_long(answer)), True
    return shown(answer, limit), False


def shown(text: str, limit: int) -> Text:
    """Returns a text, cut where it is too long to show."""
    text = _lines(text)
    return Text(
        parts=(Part(kind="same", text=text[:limit]),),
        num_left_out=max(0, len(text) - limit),
        is_long=_is_long(text),
    )


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_long(text: str) -> bool:
    return len(text) > _FOLDED_CHARACTERS or text.count("\n") >= _FOLDED_LINES
