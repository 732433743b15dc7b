"""All scores of all sides: which there are, in which order, over which rows."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import sacrebleu

from sailplan.evaluate.comparison import Answer, Row, RowLoss, Score
from sailplan.evaluate.scores.custom import Custom
from sailplan.evaluate.scores.summary import MAIN, SHARES, TITLES, score_row, summarise
from tests.support.markdown import tables

SIDES = ("base", "tuned", "checkpoint-10")
LENGTH = Custom(name="mine:shorter", function=lambda answer, reference, row: -len(answer))


def rows_of(
    answers: Mapping[str, list[str | None]],
    references: list[str],
    custom: tuple[Custom, ...] = (),
    *,
    as_json: bool = False,
) -> list[Row]:
    """Rows as a comparison has them; None where a side has not answered."""
    rows = []
    for number, reference in enumerate(references):
        texts = {side: of[number] for side, of in answers.items()}
        said = {
            side: Answer(text=text, num_tokens=5, ended=side != "base")
            for side, text in texts.items()
            if text is not None
        }
        place = {"place": f"row {number}", "prompt": "?", "num_images": 0}
        scores = {
            side: score_row(answer, reference, place, custom, as_json=as_json)
            for side, answer in said.items()
        }
        rows.append(
            Row(
                place=f"row {number}",
                prompt="?",
                reference=reference,
                answers=said,
                scores=scores,
            )
        )
    return rows


def lamps(num_rows: int) -> tuple[list[str], list[str]]:
    """References, and answers that are worse."""
    references = [f"a lamp of {number} watts on a small table" for number in range(num_rows)]
    return references, [line.replace("small table", "chair") for line in references]


def by_name(scores: tuple[Score, ...]) -> dict[str, Score]:
    return {score.name: score for score in scores}


def losses_of(means: Mapping[str, float], num_rows: int) -> dict[str, list[RowLoss]]:
    return {
        side: [
            RowLoss(
                loss_sum=(10 + row % 7) * (value + row % 3 / 10),
                num_tokens=10 + row % 7,
                num_top1=5,
            )
            for row in range(num_rows)
        ]
        for side, value in means.items()
    }


def test_scores_of_a_row_are_all_there_by_name() -> None:
    row = {"place": "row 1", "prompt": "?", "num_images": 0}
    answer = Answer(text='{"a": 1}', num_tokens=5, ended=True)

    scores = score_row(answer, '{"a": 1.0}', row, (LENGTH,), as_json=True)
    plain = score_row(answer, '{"a": 1.0}', row, (), as_json=False)

    assert [*scores] == [*list(TITLES)[3:10], "shorter", "answer_words", "ended"]
    assert [*plain] == [
        name for name in scores if name not in ("json_valid", "json_equal", "shorter")
    ]
    expected = {
        "exact_match": 0,
        "json_valid": 1,
        "json_equal": 1,
        "shorter": -8,
        "answer_words": 2,
    }
    assert expected.items() <= scores.items()
    assert scores["ended"] == 1


def test_summary_has_all_scores_in_order() -> None:
    references, worse = lamps(20)
    answers = {"base": worse, "tuned": references, "checkpoint-10": worse}
    rows = rows_of(answers, references, (LENGTH,))

    scores = summarise(rows, SIDES, losses_of({"base": 2, "tuned": 1, "checkpoint-10": 2}, 50))

    found = by_name(scores)
    assert [*found] == [
        *("loss", "perplexity", "token_accuracy"),
        *("exact_match", "token_f1", "rouge_l", "chrf", "bleu"),
        *("shorter", "answer_words", "ended"),
    ]
    assert {score.num_rows for score in scores[:3]} == {50}
    assert {score.num_rows for score in scores[3:]} == {20}
    assert all(tuple(score.sides) == SIDES for score in scores)
    assert all(tuple(score.changes) == SIDES[1:] for score in scores)
    verdicts = {name: score.changes["tuned"].verdict for name, score in found.items()}
    assert verdicts == {
        **dict.fromkeys(found, "better"),
        "shorter": "worse",
        "token_accuracy": "unclear",
        "answer_words": "unclear",
    }
    assert all(
        found[name].changes["checkpoint-10"].verdict == "unclear"
        for name in TITLES
        if name in found and name != "ended"
    )
    assert found["ended"].sides["base"].value == 0
    assert (found["loss"].better, found["answer_words"].better) == ("lower", "neither")


def test_loss_of_the_summary_is_that_of_all_tokens() -> None:
    losses = {
        "base": [
            RowLoss(loss_sum=30.0, num_tokens=10, num_top1=4),
            RowLoss(loss_sum=10.0, num_tokens=30, num_top1=16),
            RowLoss(loss_sum=0.0, num_tokens=0, num_top1=0),
        ]
    }

    loss, perplexity, accuracy = summarise([], ["base"], losses)

    assert loss.sides["base"].value == 1
    assert perplexity.sides["base"].value == pytest.approx(math.e)
    assert accuracy.sides["base"].value == 0.5
    assert loss.num_rows == 2
    assert loss.changes == {}


def test_chrf_and_bleu_of_the_summary_are_those_of_the_corpus() -> None:
    references, worse = lamps(10)
    found = by_name(summarise(rows_of({"base": worse}, references), ["base"], {}))

    for name, library in (("chrf", sacrebleu.corpus_chrf), ("bleu", sacrebleu.corpus_bleu)):
        estimate = found[name].sides["base"]
        assert estimate.value == pytest.approx(library(worse, [references]).score)
        assert estimate.low <= estimate.value <= estimate.high


def test_rows_that_a_side_has_not_answered_do_not_count() -> None:
    references, worse = lamps(10)
    some: list[str | None] = [*references[:6], *[None] * 4]
    rows = rows_of({"base": [*worse], "tuned": some}, references)

    scores = summarise(rows, ["base", "tuned"], {})
    alone = summarise(rows[:6], ["base", "tuned"], {})

    assert scores == alone
    assert {score.num_rows for score in scores} == {6}


def test_score_that_only_some_rows_have_is_taken_over_these() -> None:
    def price(answer: str, reference: str, row: Mapping[str, object]) -> Mapping[str, float]:
        return {"off": 2.0} if "7" in reference else {}

    references, worse = lamps(20)
    rows = rows_of({"base": [*worse]}, references, (Custom(name="mine:price", function=price),))

    found = by_name(summarise(rows, ["base"], {}))

    assert (found["off"].num_rows, found["token_f1"].num_rows) == (2, 20)
    assert found["off"].sides["base"].value == 2


@pytest.mark.parametrize("num_rows", [0, 1, 2])
def test_few_rows_give_scores_without_a_verdict(num_rows: int) -> None:
    references, worse = lamps(num_rows)
    rows = rows_of({"base": [*worse], "tuned": [*references]}, references)
    losses = losses_of({"base": 2, "tuned": 1}, num_rows)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = summarise(rows, ["base", "tuned"], losses)

    assert len(scores) == (10 if num_rows else 0)
    assert all(score.changes["tuned"].verdict == "unclear" for score in scores)


def test_empty_and_broken_answers_are_scored() -> None:
    texts = ["", "\ud800", "👍", "\x00", "مصباح أحمر", "红灯", "x" * 100_000]
    rows = rows_of({"base": [*texts], "tuned": [*texts[::-1]]}, texts[::-1])

    scores = by_name(summarise(rows, ["base", "tuned"], {}))

    assert scores["exact_match"].sides["tuned"].value == 1
    values = [estimate.value for score in scores.values() for estimate in score.sides.values()]
    assert all(math.isfinite(value) for value in values)


def test_rows_are_sorted_and_written_by_scores_that_have_titles() -> None:
    assert set(MAIN) <= set(TITLES)
    assert set(TITLES) > SHARES


def test_scores_of_the_page_are_all_there() -> None:
    (table,) = tables(Path(__file__).resolve().parents[3] / "docs" / "scores.md")
    assert [row[0] for row in table] == [f"`{name}`" for name in TITLES]


def test_titles_are_read_without_the_libraries() -> None:
    program = (
        "import sys, sailplan.evaluate.scores.summary\n"
        "heavy = ('torch', 'transformers', 'sacrebleu', 'rouge_score', 'nltk', 'scipy')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert printed.stdout == "[]\n"
