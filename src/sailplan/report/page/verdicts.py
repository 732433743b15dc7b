"""What a comparison says of each side against the base, in words and in numbers to draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sailplan.evaluate.comparison import Change, Comparison, Estimate, Score, Side, Verdict
from sailplan.evaluate.scores.names import TITLES
from sailplan.report.page.numbers import is_main

_MOST_TILES = 4
"""Main scores of a side that its verdict shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Whisker:
    """A change and its interval on a line whose middle is no change, in parts of its width."""

    low: float
    high: float
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One score of a side beside the base's."""

    name: str
    base: Estimate
    tuned: Estimate
    change: Change


@dataclass(frozen=True, kw_only=True, slots=True)
class Stand:
    """How a side stands against the base."""

    side: str
    verdict: Verdict
    words: str
    """What follows `tuned is`, such as `better than`."""
    detail: str
    """In how many scores it is what."""
    tiles: tuple[Tile, ...]


def stands(comparison: Comparison) -> tuple[Stand, ...]:
    """Returns how each side but the base stands, in the order of the sides."""
    return tuple(_stand(side, comparison) for side in comparison.sides[1:])


def _stand(side: Side, comparison: Comparison) -> Stand:
    base = comparison.sides[0].name
    scores = [one for one in comparison.scores if is_main(one.name) and _has(one, side, base)]
    # What a user wrote for these answers tells most of them.
    scores.sort(key=lambda score: score.name in TITLES)
    counts = Counter(score.changes[side.name].verdict for score in scores)
    better, worse, unclear = (counts[verdict] for verdict in ("better", "worse", "unclear"))
    if better and worse:
        verdict: Verdict = "unclear"
        words = "better in some scores and worse in others than"
    elif better or worse:
        verdict = "better" if better else "worse"
        words = f"{verdict} than"
    else:
        verdict = "unclear"
        words = "neither clearly better nor clearly worse than"
    found = [f"{name} in {counts[name]}" for name in ("better", "worse", "unclear") if counts[name]]
    of = f" of {len(scores)} scores" if len(scores) != 1 else " score"
    return Stand(
        side=side.name,
        verdict=verdict,
        words=words,
        detail=", ".join(found) + of if better + worse + unclear else "no score compares them yet",
        tiles=tuple(
            Tile(
                name=score.name,
                base=score.sides[base],
                tuned=score.sides[side.name],
                change=score.changes[side.name],
            )
            for score in scores[:_MOST_TILES]
        ),
    )


def _has(score: Score, side: Side, base: str) -> bool:
    return side.name in score.changes and side.name in score.sides and base in score.sides


def whisker(changes: Sequence[Change], at: int) -> Whisker:
    """Returns where to draw one of several changes of a score, all to one scale."""
    ends = [abs(end) for one in changes for end in (one.difference.low, one.difference.high)]
    widest = max(ends, default=0.0) or 1.0
    found = changes[at].difference
    low, high, value = (0.5 + 0.46 * end / widest for end in (found.low, found.high, found.value))
    return Whisker(low=round(low, 4), high=round(high, 4), value=round(value, 4))
