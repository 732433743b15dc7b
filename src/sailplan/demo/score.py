"""Scores a model on the held-out part of the catalogue: which answers are right to the letter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sailplan.demo.recipe import MAX_NEW_TOKENS
from sailplan.progress import track

if TYPE_CHECKING:
    from sailplan.evaluate.generate import Question
    from sailplan.evaluate.speaker import Speaker
    from sailplan.run.config import Run

STYLES = ("description", "listing")
"""The columns with answers, one for each style."""

BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """The held-out rows as questions, with the right answer in each style."""

    questions: tuple[Question, ...]
    """What is asked, with the pictures."""
    answers: tuple[dict[str, str], ...]
    """By style."""

    def shuffled(self) -> HeldOut:
        """Returns the same rows, each with the picture of the next: the control.

        A model that answers from the picture is then right by chance alone.
        """
        pictures = [question.images for question in self.questions]
        moved = zip(self.questions, [*pictures[1:], pictures[0]], strict=True)
        questions = tuple(
            type(question)(messages=question.messages, images=images) for question, images in moved
        )
        return HeldOut(questions=questions, answers=self.answers)


def load_held_out(run: Run) -> HeldOut:
    """Reads the held-out rows of a run as the run itself would."""
    from sailplan.data.formats import resolve_format
    from sailplan.data.images import image_opener
    from sailplan.data.sources import load_rows
    from sailplan.evaluate.held_out import held_out_questions

    rows = load_rows(run)
    format, opener = resolve_format(run, rows), image_opener(run, rows)
    test_rows = list(rows.eval or ())
    asked = held_out_questions(rows, format, opener, range(len(test_rows)))
    questions = tuple(row.question for row in asked)
    answers = tuple({style: row[style] for style in STYLES} for row in test_rows)
    return HeldOut(questions=questions, answers=answers)


def exact_match(speaker: Speaker, held_out: HeldOut, *, label: str) -> dict[str, float]:
    """Returns, for each style, the part of the rows that the model answers exactly so."""
    from sailplan.evaluate.generate import Sampling, generate

    sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS, temperature=0.0)
    said = generate(speaker, held_out.questions, sampling, batch_size=BATCH_SIZE)
    texts = [answer.text for answer in track(said, label=label, total=len(held_out.questions))]
    return {style: _part(texts, [row[style] for row in held_out.answers]) for style in STYLES}


def _part(texts: Sequence[str], answers: Sequence[str]) -> float:
    pairs = zip(texts, answers, strict=True)
    return sum(text == answer for text, answer in pairs) / len(answers)
