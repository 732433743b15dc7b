"""ROUGE-L, chrF and BLEU, by the libraries that papers cite: rouge_score and sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from sailplan.evaluate.scores.statistics import Array, Sums
from sailplan.evaluate.scores.texts import bleu_tokenizer, words

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

MAX_TABLE_CELLS = 250_000
"""Pairs of words up to which rouge_score fills its table: about 50 ms."""

MAX_ROUGE_WORDS = 50_000
"""Of a text, that ROUGE-L looks at: its work grows with the square of them."""


def rouge_l(answer: str, reference: str) -> float:
    """Returns ROUGE-L, the F measure of the longest common subsequence of words, 0 to 1.

    The words are ours, since rouge_score's tokenizer knows ASCII letters alone.
    """
    said, right = words(answer)[:MAX_ROUGE_WORDS], words(reference)[:MAX_ROUGE_WORDS]
    if len(said) * len(right) <= MAX_TABLE_CELLS:
        return float(_rouge().score(right, said)["rougeL"].fmeasure)
    # Its table of 20,000 words each would take minutes and gigabytes.
    from rouge_score.scoring import fmeasure

    common = _longest_common(said, right)
    return float(fmeasure(common / len(said), common / len(right)))


def chrf(answer: str, reference: str) -> float:
    """Returns chrF of one answer, 0 to 100."""
    return float(_chrf().sentence_score(answer, [reference]).score)


def bleu(answer: str, reference: str) -> float:
    """Returns BLEU of one answer, 0 to 100, over as many orders of n-grams as it has."""
    metric = _bleu(bleu_tokenizer([reference]))
    return float(metric.sentence_score(answer, [reference]).score)


def chrf_sums(answers: Sequence[str], references: Sequence[str]) -> Sums:
    """Returns what chrF of the whole corpus is made of, by rows."""
    return _sums(_chrf(), answers, references)


def bleu_sums(answers: Sequence[str], references: Sequence[str]) -> Sums:
    """Returns what BLEU of the whole corpus is made of, by rows."""
    return _sums(_bleu(bleu_tokenizer(references)), answers, references)


def _sums(metric: BLEU | CHRF, answers: Sequence[str], references: Sequence[str]) -> Sums:
    # Not public, but what sacrebleu's own tests of significance call from outside.
    counts = metric._extract_corpus_statistics(answers, [references])

    def value(sums: Array) -> Array:
        scores = [metric._compute_score_from_stats(row).score for row in sums.tolist()]
        return np.array(scores, dtype=np.float64)

    return Sums(rows=np.array(counts, dtype=np.float64), value=value)


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence, a row of the table as one number.

    Bit n of a row is 0 where the table grows at word n (Hyyrö 2004, Bit-Parallel LCS-length
    Computation Revisited).
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    row = full = (1 << len(first)) - 1
    for word in second:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(first) - row.bit_count()


@cache
def _rouge() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=list))  # of words already


@cache
def _chrf() -> CHRF:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


@cache
def _bleu(tokenizer: str) -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    # The orders matter only where no answer has four words: else it is the default.
    return BLEU(tokenize=tokenizer, effective_order=True, force=True)
