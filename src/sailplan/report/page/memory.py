"""Memory planned against measured, as bars to one scale."""

from __future__ import annotations

from dataclasses import dataclass

from sailplan.report.record import Memory
from sailplan.sizes import shown_bytes

_COLOURS = 6
"""That the page has for kinds of memory; the kinds behind them share the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A stretch of a bar."""

    name: str
    shown: str
    percent: float
    colour: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One bar."""

    name: str
    shown: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bars:
    """All bars of a GPU."""

    bars: tuple[Bar, ...]
    card_percent: float | None
    """Where the card ends, None where it is not known."""
    card: str


def bars_of(memory: Memory) -> Bars:
    """Returns what was planned by kind, what was measured, and where the card ends."""
    measured = {
        "measured, tensors": memory.active_bytes,
        "measured, with what torch holds back": memory.reserved_bytes,
    }
    known = [memory.planned_bytes, memory.card_bytes or 0, *(v or 0 for v in measured.values())]
    whole = max(known) or 1
    planned = Bar(
        name="planned",
        shown=shown_bytes(memory.planned_bytes),
        pieces=tuple(
            Piece(
                name=name,
                shown=shown_bytes(size),
                percent=round(100 * size / whole, 2),
                colour=min(number, _COLOURS - 1),
            )
            for number, (name, size) in enumerate(memory.parts)
        ),
    )
    others = tuple(
        Bar(
            name=name,
            shown=shown_bytes(size),
            pieces=(
                Piece(name="", shown="", percent=round(100 * size / whole, 2), colour=_COLOURS),
            ),
        )
        for name, size in measured.items()
        if size is not None
    )
    card = memory.card_bytes
    return Bars(
        bars=(planned, *others),
        card_percent=None if card is None else round(100 * card / whole, 2),
        card="" if card is None else shown_bytes(card),
    )
