"""Differences between an answer and its reference, word by word."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sailplan.report.page.differences import MOST_WORDS, differences


def written(answer: str, reference: str) -> str:
    """The differences as text: `+added+`, `-missing-`."""
    signs = {"same": "", "added": "+", "missing": "-"}
    parts = differences(answer, reference)
    assert parts is not None
    return "".join(f"{signs[part.kind]}{part.text}{signs[part.kind]}" for part in parts)


@pytest.mark.parametrize(
    ("answer", "reference", "wanted"),
    [
        ("a red star.", "a red star.", "a red star."),
        ("a blue star.", "a red star.", "a -red-+blue+ star."),
        ("a star", "a  star", "a star"),
        ("a star now", "a star", "a star +now+"),
        ("star", "a red star", "-a red-star"),
        ("  two\n\nlines", "two lines", "  two\n\nlines"),
        ("costs 3.50, not 4", "costs 3.40, not 4", "costs -3.40-+3.50+, not 4"),
        ("don't", "do", "-do-+don't+"),
        ("三颗红色的星", "三颗蓝色的星", "三颗-蓝-+红+色的星"),
        ("ثلاث نجوم حمراء", "ثلاث نجوم زرقاء", "ثلاث نجوم -زرقاء-+حمراء+"),
        ("👩‍👩‍👧 yes", "👩‍👩‍👦 yes", "-👩‍👩‍👦-+👩‍👩‍👧+ yes"),
        ("", "all of it", "-all of it-"),
        ("all of it", "", "+all of it+"),
        ("", "", ""),
    ],
)
def test_differences_mark_words_that_only_one_text_has(
    answer: str, reference: str, wanted: str
) -> None:
    assert written(answer, reference) == wanted


@settings(max_examples=60, deadline=None)
@given(answer=st.text(max_size=60), reference=st.text(max_size=60))
def test_parts_but_the_missing_ones_are_the_answer(answer: str, reference: str) -> None:
    parts = differences(answer, reference)
    assert parts is not None
    assert "".join(part.text for part in parts if part.kind != "missing") == answer
    assert all(part.text for part in parts)


def test_missing_stretch_says_how_many_words_it_has() -> None:
    parts = differences("yes", "no, not at all")
    assert parts is not None
    assert [(part.kind, part.num_words) for part in parts] == [("missing", 5), ("added", 0)]


def test_texts_of_too_many_words_are_not_compared() -> None:
    words = " ".join(str(number) for number in range(MOST_WORDS))
    assert differences(words, words) is not None
    assert differences(f"{words} more", "one") is None
    assert differences("one", f"{words} more") is None


def test_texts_that_repeat_themselves_are_not_compared() -> None:
    assert differences("again " * 1000, "again " * 1000) is None
    assert differences("W" * 1_000_000, "V" * 1_000_000) is not None
