"""ROUGE-L, chrF and BLEU are the libraries' own numbers, of any script and length."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from sailplan.evaluate.scores import libraries
from sailplan.evaluate.scores.libraries import bleu, bleu_sums, chrf, chrf_sums, rouge_l

PAIRS = [
    ("the quick brown dog jumps on the log", "The quick brown fox jumps over the lazy dog."),
    ("A red lamp.", "A red lamp."),
    ("completely different words", "nothing in common here, at all"),
    ("lamp", "A small red table lamp with a metal foot"),
    ("", "A red lamp"),
    ("A red lamp", ""),
    ("", ""),
    ("!!! ???", "..."),
    ("price: $1,299.00 &amp; more", "Price: $1,299.00 & more"),
]
ANSWERS, REFERENCES = zip(*PAIRS, strict=True)
ASCII = st.text(st.sampled_from("ab AB1.,-_\n\t"), max_size=40)


def library_rouge_l(answer: str, reference: str) -> float:
    return float(RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure)


@pytest.mark.parametrize(("answer", "reference"), PAIRS)
def test_scores_of_a_row_are_the_libraries_own(answer: str, reference: str) -> None:
    assert rouge_l(answer, reference) == library_rouge_l(answer, reference)
    assert chrf(answer, reference) == sacrebleu.sentence_chrf(answer, [reference]).score
    assert bleu(answer, reference) == sacrebleu.sentence_bleu(answer, [reference]).score


@settings(deadline=None, max_examples=200)
@given(ASCII, ASCII)
def test_rouge_l_of_ascii_is_that_of_rouge_score(answer: str, reference: str) -> None:
    assert rouge_l(answer, reference) == library_rouge_l(answer, reference)


@settings(deadline=None, max_examples=200)
@given(ASCII, ASCII)
def test_rouge_l_past_the_largest_table_is_that_of_rouge_score(answer: str, reference: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libraries, "MAX_TABLE_CELLS", 0)
        assert rouge_l(answer, reference) == library_rouge_l(answer, reference)


def test_scores_of_a_corpus_are_the_libraries_own() -> None:
    of_chrf = sacrebleu.corpus_chrf(ANSWERS, [REFERENCES]).score
    of_bleu = sacrebleu.corpus_bleu(ANSWERS, [REFERENCES]).score

    assert chrf_sums(ANSWERS, REFERENCES).total == pytest.approx(of_chrf, abs=1e-9)
    assert bleu_sums(ANSWERS, REFERENCES).total == pytest.approx(of_bleu, abs=1e-9)


def test_scores_of_any_resample_are_the_libraries_own() -> None:
    of_bleu = partial(sacrebleu.corpus_bleu, use_effective_order=True)
    sums = {chrf_sums: sacrebleu.corpus_chrf, bleu_sums: of_bleu}
    for rows in np.random.default_rng(0).integers(len(PAIRS), size=(20, len(PAIRS))):
        answers, references = [ANSWERS[row] for row in rows], [REFERENCES[row] for row in rows]
        for ours, library in sums.items():
            whole = ours(ANSWERS, REFERENCES)
            resampled = whole.evaluate(whole.rows[rows].sum(axis=0, keepdims=True))[0]
            expected = library(answers, [references]).score
            assert resampled == pytest.approx(expected, abs=1e-9)


def test_bleu_of_short_answers_is_over_the_orders_that_they_have() -> None:
    answers, references = ["red lamp", "blue"], ["red lamp", "blue"]

    assert sacrebleu.corpus_bleu(answers, [references]).score == 0
    assert bleu_sums(answers, references).total == pytest.approx(100)


@pytest.mark.parametrize(
    ("answer", "near", "far"),
    [
        ("红色的台灯很好看", "红色台灯很好看", "蓝天白云"),
        ("赤いランプです", "赤いランプだ", "青い空"),
        ("مصباح أحمر صغير جدا", "مصباح أحمر صغير", "سماء زرقاء"),
        ("โคมไฟสีแดง", "โคมไฟสีดำ", "ครับผม"),
        ("маленькая красная лампа здесь", "маленькая красная лампа", "небо"),
    ],
)
def test_scores_of_other_scripts_are_higher_of_nearer_answers(
    answer: str, near: str, far: str
) -> None:
    for score in (rouge_l, chrf, bleu):
        assert score(answer, answer) == pytest.approx(score("lamp of red iron", "lamp of red iron"))
        assert score(near, answer) > score(far, answer)
        assert score(near, answer) > 0


def test_bleu_of_chinese_is_by_sacrebleus_chinese_tokenizer() -> None:
    answers, references = ["红色的台灯很好看", "天空"], ["红色台灯很好看", "蓝色的天空"]
    expected = sacrebleu.corpus_bleu(answers, [references], tokenize="zh").score

    assert bleu_sums(answers, references).total == pytest.approx(expected)
    assert expected > 30


@pytest.mark.parametrize("text", ["👍🎉", "\ud800 broken \udfff", "\x00\u202e", "a\u0301" * 50])
def test_scores_of_odd_texts_are_numbers_between_their_bounds(text: str) -> None:
    for answer, reference in ((text, text), (text, "lamp"), ("lamp", text), (text, "")):
        assert 0 <= rouge_l(answer, reference) <= 1
        assert 0 <= chrf(answer, reference) <= 100 + 1e-9
        assert 0 <= bleu(answer, reference) <= 100 + 1e-9


@pytest.mark.parametrize("letters", ["abc def ghi jkl", "天地玄黃宇宙洪荒"])
def test_very_long_answers_are_scored(letters: str) -> None:
    """A table of rouge_score would have 100 million cells and more."""
    random_letters = random.Random(0)
    answer, reference = ("".join(random_letters.choices(letters, k=100_000)) for _ in range(2))

    assert 0 < rouge_l(answer, reference) < 1
    assert rouge_l(answer, answer) == 1
    assert 0 < chrf(answer, reference) < 100
    assert 0 < bleu(answer, reference) < 100


def test_very_long_answer_of_words_is_not_cut() -> None:
    reference = " ".join(f"word{number}" for number in range(5_000))

    assert rouge_l(f"{reference} {reference}", reference) == pytest.approx(2 / 3)
