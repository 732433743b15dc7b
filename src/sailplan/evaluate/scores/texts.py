"""Scores of two texts that need no library: the same words, the same JSON."""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal

import regex

_SPACELESS = (
    r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]&&[\p{L}\p{M}\p{N}]]"
)
"""Of the scripts that set no space between words."""
_LETTER = regex.compile(r"\p{L}")
_HAN = regex.compile(r"[\p{Han}&&\p{L}]", regex.V1)
_SPACELESS_LETTER = regex.compile(rf"[{_SPACELESS}&&\p{{L}}]", regex.V1)
_WORD = regex.compile(rf"{_SPACELESS}\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--{_SPACELESS}]+", regex.V1)
_PIECE = regex.compile(rf"{_SPACELESS}\p{{M}}*|[^{_SPACELESS}]+", regex.V1)
_PUNCTUATION = regex.compile(rf"[\p{{P}}{re.escape(string.punctuation)}]")
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def words(text: str) -> list[str]:
    """Returns the words of a text: runs of letters and digits in lower case.

    In scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each letter is a word,
    with its marks. Of ASCII text these are the tokens of rouge_score's own tokenizer.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text.lower()))  # type: ignore[no-any-return]


def exact_match(answer: str, reference: str) -> float:
    """Returns 1 where the texts are the same but for space around them, else 0."""
    return float(answer.strip() == reference.strip())


def token_f1(answer: str, reference: str) -> float:
    """Returns the F1 score of the answer's words, in any order, as SQuAD counts it.

    Its normalisation: lower case, without punctuation and the articles a, an and the, split at
    spaces. Beyond it, punctuation of every script goes, and each letter of a script without spaces
    is a word. Two texts without a word are equal.
    """
    said, right = _bare_words(answer), _bare_words(reference)
    if not said or not right:
        return float(said == right)
    common = (Counter(said) & Counter(right)).total()
    return 2 * common / (len(said) + len(right))


def are_json(references: Sequence[str]) -> bool:
    """Returns whether there are references and each is a JSON object or array."""
    return bool(references) and all(map(json_valid, references))


def json_valid(answer: str) -> float:
    """Returns 1 where the answer is a JSON object or array and nothing else, else 0."""
    return float(_parsed(answer) is not None)


def json_equal(answer: str, reference: str) -> float:
    """Returns 1 where both are JSON with the same content, else 0.

    The order of keys, spaces and how a number is written (1, 1.0) make no difference.
    """
    said = _parsed(answer)
    try:
        return float(said is not None and said == _parsed(reference))
    except RecursionError:
        return 0.0


def bleu_tokenizer(references: Sequence[str]) -> Literal["13a", "zh", "char"]:
    """Returns the name of sacrebleu's tokenizer that fits most letters of some texts.

    `13a`, its default, splits at spaces. Where most letters are of scripts without spaces, it is
    `zh`, or `char` where more than a tenth of these are other letters than Chinese ones.
    """
    text = "\n".join(references)
    num_letters, num_spaceless = _count(_LETTER, text), _count(_SPACELESS_LETTER, text)
    if 2 * num_spaceless <= num_letters:
        return "13a"
    return "zh" if 10 * _count(_HAN, text) >= 9 * num_spaceless else "char"


def _count(pattern: Any, text: str) -> int:
    return len(pattern.findall(text))


def _bare_words(text: str) -> list[str]:
    bare = _ARTICLE.sub(" ", _PUNCTUATION.sub("", text.lower()))
    return [piece for word in bare.split() for piece in _PIECE.findall(word)]


def _parsed(text: str) -> Any:
    """Returns the object or array, None where the text is none."""
    try:
        value = json.loads(
            text, parse_int=_number, parse_float=_number, parse_constant=_no_constant
        )
    except (ValueError, ArithmeticError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _number(digits: str) -> tuple[Decimal]:
    # In a tuple, which JSON has not: 1 and true are equal in Python.
    return (Decimal(digits),)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
