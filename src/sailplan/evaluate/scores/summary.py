"""Scores of rows, and of all rows together with what may be said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from sailplan.errors import DataError
from sailplan.evaluate.comparison import Answer, Row, RowLoss, Score
from sailplan.evaluate.scores import libraries, texts
from sailplan.evaluate.scores.custom import Custom
from sailplan.evaluate.scores.names import MAIN, SHARES, TITLES
from sailplan.evaluate.scores.statistics import Sums, change, estimate, exponential, mean, ratio

__all__ = ["MAIN", "SHARES", "TITLES", "score_row", "summarise"]

_BETTER: Mapping[str, Literal["higher", "lower", "neither"]] = {
    "loss": "lower",
    "perplexity": "lower",
    "answer_words": "neither",
}
"""Of all others, and of a user's own, higher values are better."""

_CORPUS: Mapping[str, Callable[[Sequence[str], Sequence[str]], Sums]] = {
    "chrf": libraries.chrf_sums,
    "bleu": libraries.bleu_sums,
}
"""Scores that are counted over all answers together; of others the rows' mean is taken."""


def score_row(
    answer: Answer,
    reference: str,
    row: Mapping[str, Any],
    custom: Sequence[Custom],
    *,
    as_json: bool,
) -> dict[str, float]:
    """Returns all scores of one answer by their names.

    Args:
        answer: What the model said.
        reference: The answer in the data.
        row: What a user's own function is told: `place`, `prompt`, `num_images`.
        custom: The user's own scores.
        as_json: Whether answers are to be JSON; `texts.are_json` of all references tells.

    Raises:
        DataError: A user's function failed, or two give scores of one name.
    """
    text = answer.text
    scores = {
        "exact_match": texts.exact_match(text, reference),
        "token_f1": texts.token_f1(text, reference),
        "rouge_l": libraries.rouge_l(text, reference),
        "chrf": libraries.chrf(text, reference),
        "bleu": libraries.bleu(text, reference),
    }
    if as_json:
        scores["json_valid"] = texts.json_valid(text)
        scores["json_equal"] = texts.json_equal(text, reference)
    for own in custom:
        for name, value in own.score(text, reference, row).items():
            if name in scores:
                got = f"{row['place']}: {own.name} returned {name}, as another function did"
                raise DataError(got, todo="give one of them another name")
            scores[name] = value
    scores["answer_words"] = float(len(texts.words(text)))
    scores["ended"] = float(answer.ended)
    return scores


def summarise(
    rows: Sequence[Row], sides: Sequence[str], losses: Mapping[str, Sequence[RowLoss]]
) -> tuple[Score, ...]:
    """Returns each score over all rows, with its interval, and each side's change of the base.

    Args:
        rows: With answers and scores; those that a side has not answered are left out.
        sides: Names of the sides, the base first.
        losses: By side, of the same rows in the same order, these or more; may be empty.

    Returns:
        The scores that there are rows for, in the order of `TITLES`, a user's own before the
        lengths.
    """
    answered = [row for row in rows if all(side in row.answers for side in sides)]
    found = {**dict(_loss_sums(sides, losses)), **dict(_answer_sums(answered, sides))}
    return tuple(_score(name, by_side, sides) for name, by_side in found.items())


def _score(name: str, by_side: Mapping[str, Sums], sides: Sequence[str]) -> Score:
    better = _BETTER.get(name, "higher")
    base, *others = sides
    share = name in SHARES
    return Score(
        name=name,
        better=better,
        num_rows=len(by_side[base].rows),
        sides={side: estimate(by_side[side], share=share) for side in sides},
        changes={side: change(by_side[base], by_side[side], better) for side in others},
    )


def _loss_sums(
    sides: Sequence[str], losses: Mapping[str, Sequence[RowLoss]]
) -> Iterator[tuple[str, dict[str, Sums]]]:
    if not all(losses.get(side) for side in sides):
        return
    # Rows without a trained token add nothing, and a resample of them alone has no loss.
    trained = [
        row
        for row in zip(*(losses[side] for side in sides), strict=True)
        if all(loss.num_tokens for loss in row)
    ]
    if not trained:
        return
    columns = dict(zip(sides, zip(*trained, strict=True), strict=True))
    tokens = {side: [loss.num_tokens for loss in of] for side, of in columns.items()}
    sums = {
        side: ratio([loss.loss_sum for loss in of], tokens[side]) for side, of in columns.items()
    }
    yield "loss", sums
    yield "perplexity", {side: exponential(of) for side, of in sums.items()}
    yield (
        "token_accuracy",
        {side: ratio([loss.num_top1 for loss in of], tokens[side]) for side, of in columns.items()},
    )


def _answer_sums(
    rows: Sequence[Row], sides: Sequence[str]
) -> Iterator[tuple[str, dict[str, Sums]]]:
    for name in _names(rows, sides):
        scored = [row for row in rows if all(name in row.scores.get(side, ()) for side in sides)]
        if not scored:
            continue
        if name in _CORPUS:
            references = [row.reference for row in scored]
            answers = {side: [row.answers[side].text for row in scored] for side in sides}
            yield name, {side: _CORPUS[name](answers[side], references) for side in sides}
        else:
            yield name, {side: mean([row.scores[side][name] for row in scored]) for side in sides}


def _names(rows: Sequence[Row], sides: Sequence[str]) -> list[str]:
    """Returns the scores of answers, a user's own ones where the lengths begin."""
    scores = (row.scores.get(side, {}) for row in rows for side in sides)
    there = dict.fromkeys(name for by_name in scores for name in by_name)
    ours = [name for name in TITLES if name in there and name != "loss"]
    lengths = [name for name in ours if name in ("answer_words", "ended")]
    own = [name for name in there if name not in TITLES]
    return [*(name for name in ours if name not in lengths), *own, *lengths]
