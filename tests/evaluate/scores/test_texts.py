"""Scores of two texts: which words they have, and whether they are the same JSON."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sailplan.evaluate.scores.texts import (
    are_json,
    bleu_tokenizer,
    exact_match,
    json_equal,
    json_valid,
    token_f1,
    words,
)

ASCII = st.text(st.characters(max_codepoint=127), max_size=60)
ENGLISH = [
    ("Kyoto", "Kyoto"),
    ("The Eiffel Tower, in Paris!", "eiffel tower in paris"),
    ("a cat sat on the mat", "the mat has a cat on it"),
    ("It's state-of-the-art, 1.5 m wide.", "its 15 m wide"),
    ("", ""),
    ("the", "a"),
    ("the", "Paris"),
    ("", "Paris"),
    ("no no no yes", "no yes yes"),
    ("\tone\n two  three", "three two one"),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Red lamp, 40 W!", ["red", "lamp", "40", "w"]),
        ("红色台灯 40W 灯", ["红", "色", "台", "灯", "40w", "灯"]),
        ("abc中文def", ["abc", "中", "文", "def"]),
        ("コーヒー", ["コ", "ー", "ヒ", "ー"]),
        ("ภาษาไทย", ["ภ", "า", "ษ", "า", "ไ", "ท", "ย"]),
        ("น้ำดี", ["น้", "ำ", "ดี"]),
        ("مصباح أحمر، ٤٠ واط", ["مصباح", "أحمر", "٤٠", "واط"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("Привет, мир", ["привет", "мир"]),
        ("빨간 램프", ["빨간", "램프"]),
        ("cafe\u0301 caf\xe9", ["caf\xe9", "caf\xe9"]),
        ("👍 ok 🎉", ["ok"]),
        ("snake_case", ["snake", "case"]),
        ("\ud800 broken \udfff", ["broken"]),
        ("", []),
    ],
)
def test_words_of_any_script_are_found(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@settings(deadline=None, max_examples=300)
@given(ASCII)
def test_words_of_ascii_are_those_of_rouge_score(text: str) -> None:
    from rouge_score.tokenizers import DefaultTokenizer

    assert words(text) == DefaultTokenizer().tokenize(text)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [("Red", "Red\n", 1), ("red", "Red", 0), ("Red.", "Red", 0), ("", " ", 1), ("caf\xe9", "e", 0)],
)
def test_exact_match_forgives_space_around_and_nothing_else(
    answer: str, reference: str, expected: int
) -> None:
    assert exact_match(answer, reference) == expected


def squad_f1(answer: str, reference: str) -> float:
    from torchmetrics.functional.text import squad

    said = {"prediction_text": answer, "id": "1"}
    right = {"answers": {"answer_start": [0], "text": [reference]}, "id": "1"}
    return float(squad(said, right)["f1"]) / 100


@pytest.mark.parametrize(("answer", "reference"), ENGLISH)
def test_token_f1_is_that_of_squad(answer: str, reference: str) -> None:
    assert token_f1(answer, reference) == pytest.approx(squad_f1(answer, reference), abs=1e-6)


@settings(deadline=None, max_examples=100)
@given(ASCII, ASCII)
def test_token_f1_of_ascii_is_that_of_squad(answer: str, reference: str) -> None:
    assert token_f1(answer, reference) == pytest.approx(squad_f1(answer, reference), abs=1e-6)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("红色的灯。", "红色灯", 6 / 7),
        ("مصباح أحمر،", "مصباح أزرق", 0.5),
        ("👍", "👍", 1),
        ("👍", "👎", 0),
        ("\ud800", "\ud800", 1),
    ],
)
def test_token_f1_of_other_scripts_counts_their_words(
    answer: str, reference: str, expected: float
) -> None:
    assert token_f1(answer, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "valid"),
    [
        ('{"a": [1, 2.5, null]}', 1),
        (" []\n", 1),
        ("{}", 1),
        ('"a text"', 0),
        ("7", 0),
        ("NaN", 0),
        ('{"a": NaN}', 0),
        ("{'a': 1}", 0),
        ("```json\n{}\n```", 0),
        ('{"a": 1} and so on', 0),
        ("[" * 100_000, 0),
        ("[" * 100_000 + "]" * 100_000, 0),
        (f"[{'9' * 5_000}]", 1),
        ("[1e99999999999999999999]", 0),
        ('["\ud800"]', 1),
        ("", 0),
    ],
    ids=range(16),
)
def test_valid_json_is_an_object_or_array_and_nothing_around(answer: str, valid: int) -> None:
    assert json_valid(answer) == valid


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ('{"a": 1, "b": [2]}', '{ "b": [2.0], "a": 1 }', 1),
        ('{"a": 1}', '{"a": true}', 0),
        ('{"a": "1"}', '{"a": 1}', 0),
        ("[1, 2]", "[2, 1]", 0),
        ("[0.1]", "[1e-1]", 1),
        ("[9007199254740993]", "[9007199254740992]", 0),
        ('["\\u00e9"]', '["\xe9"]', 1),
        ("no", "{}", 0),
        ("no", "neither", 0),
        ("[" * 900 + "]" * 900, "[" * 900 + "]" * 900, 1),
    ],
    ids=range(10),
)
def test_equal_json_has_the_same_content(answer: str, reference: str, equal: int) -> None:
    assert json_equal(answer, reference) == equal


def test_answers_are_json_where_all_references_are() -> None:
    assert are_json(['{"a": 1}', "[]"])
    assert not are_json(['{"a": 1}', "a lamp"])
    assert not are_json(["1", "2"])
    assert not are_json([])


@pytest.mark.parametrize(
    ("references", "tokenizer"),
    [
        (["a red lamp"], "13a"),
        (["a red lamp", "红灯"], "13a"),
        (["红色的台灯", "LED 灯泡很亮"], "zh"),
        (["赤いランプです"], "char"),
        (["โคมไฟสีแดง"], "char"),
        (["빨간 램프"], "13a"),
        (["مصباح أحمر"], "13a"),
        (["42", "!"], "13a"),
        ([], "13a"),
    ],
)
def test_tokenizer_of_bleu_fits_most_letters(references: list[str], tokenizer: str) -> None:
    assert bleu_tokenizer(references) == tokenizer
