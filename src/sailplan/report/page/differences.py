"""How an answer differs from its reference, word by word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

MOST_WORDS = 2000
"""Of either text; more are not compared."""
_MOST_PAIRS = 60_000
"""Pairs of equal words that are looked at: a model that repeats itself has them by the million."""

_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Letters of scripts without spaces, each a word here: kana and Han."""
_MARKS = (
    r"!-/:-@\[-`{-~\u00ab\u00bb\u2010-\u2027\u2030-\u205e\u3000-\u303f\uff01-\uff0f\uff1a-\uff20"
)
_MARKS += "\u060c\u061b\u061f\u0964\u0965\u05be"
_LETTERS = rf"[^\s{_MARKS}{_ALONE}]+"
_WORD = re.compile(rf"(?:[{_ALONE}]|{_LETTERS}(?:['’.,-]{_LETTERS})*|[{_MARKS}])\s*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A stretch of words that are alike."""

    kind: Literal["same", "added", "missing"]
    """`added` are the answer's own words, `missing` those that only the reference has."""
    text: str
    num_words: int = 0
    """Of a missing stretch."""


def differences(answer: str, reference: str) -> tuple[Part, ...] | None:
    """Returns an answer in parts, and between them what the reference has in their place.

    All parts but the missing ones, put together, are the answer. Chinese and Japanese characters
    are words of their own; spaces do not count.

    Returns:
        The parts; None where the texts are too long, or repeat themselves too often, to compare.
    """
    ours, theirs = _words(answer), _words(reference)
    if not _is_bounded(ours, theirs):
        return None
    matcher = SequenceMatcher(None, [w.rstrip() for w in ours], [w.rstrip() for w in theirs], False)
    parts: list[Part] = []
    start = re.match(r"\s*", answer)
    if start and start[0]:
        parts.append(Part(kind="same", text=start[0]))
    for kind, low, high, other_low, other_high in matcher.get_opcodes():
        missing = "".join(theirs[other_low:other_high]).rstrip()
        if kind != "equal" and missing:
            num_words = other_high - other_low
            parts.append(Part(kind="missing", text=missing, num_words=num_words))
        parts += _stretch("".join(ours[low:high]), is_same=kind == "equal")
    return tuple(parts)


def _stretch(text: str, *, is_same: bool) -> Iterator[Part]:
    """Yields a stretch of the answer, the spaces behind it unmarked."""
    if is_same:
        yield Part(kind="same", text=text)
        return
    words = text.rstrip()
    if words:
        yield Part(kind="added", text=words)
    if len(words) < len(text):
        yield Part(kind="same", text=text[len(words) :])


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _is_bounded(ours: list[str], theirs: list[str]) -> bool:
    if max(len(ours), len(theirs)) > MOST_WORDS:
        return False
    counts = Counter(word.rstrip() for word in theirs)
    return sum(counts[word.rstrip()] for word in ours) <= _MOST_PAIRS
