from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sailplan.data.images import ImageOpener
from sailplan.data.sample import Message, Part
from sailplan.errors import HardwareError
from sailplan.evaluate import answers as room
from sailplan.evaluate.answers import Waiting, answers, batches
from sailplan.evaluate.comparison import Answer
from sailplan.evaluate.generate import Question, Sampling, generate
from sailplan.evaluate.held_out import Asked
from sailplan.evaluate.speaker import Speaker, load_speaker

SHORT = Sampling(max_new_tokens=8, temperature=0.0, seed=0)


def waiting(number: int, words: str = "Why?") -> Waiting:
    message = Message(role="user", content=[Part(type="text", text=words)])
    asked = Asked(
        place=f"row {number}",
        prompt=words,
        answer="",
        messages=[message],
        entry=0,
        opener=ImageOpener(root=None),
    )
    return Waiting(key=f"key {number}", asked=asked, num_tokens=len(words))


@pytest.fixture(scope="module")
def speaker(tiny_model: Callable[[str], Path]) -> Speaker:
    return load_speaker(str(tiny_model("llama")))


@pytest.fixture(scope="module")
def rows() -> list[Waiting]:
    return [waiting(number, f"Say it {number} times" + "!" * number) for number in range(7)]


def test_batches_depend_on_the_rows_alone_and_the_longest_come_first(rows: list[Waiting]) -> None:
    cut = batches(rows, 3)
    assert [len(part) for part in cut] == [3, 3, 1]
    lengths = [row.num_tokens for part in cut for row in part]
    assert lengths == sorted(lengths, reverse=True)
    other = list(rows)
    random.Random(1).shuffle(other)
    assert batches(other, 3) == cut
    assert batches([], 3) == []


def test_batch_without_room_is_halved_until_it_has_some(
    speaker: Speaker, rows: list[Waiting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full GPU: what is too large raises torch's own error; the rest is really asked."""
    expected = [dict(found) for found in answers(speaker, batches(rows, 7), SHORT)]
    sizes = []

    def small(speaker: Speaker, questions: Sequence[Question], *rest: Any, **options: Any) -> Any:
        sizes.append(len(questions))
        if len(questions) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(speaker, questions, *rest, **options)

    monkeypatch.setattr(room, "generate", small)
    assert [dict(found) for found in answers(speaker, batches(rows, 7), SHORT)] == expected
    assert sizes == [7, 3, 1, 2, 4, 2, 2]


def test_row_without_room_is_an_error_that_names_it(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **options: Any) -> Iterator[Answer]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(room, "generate", none)
    with pytest.raises(HardwareError, match=r"row 3: the GPU has no memory to answer one row"):
        next(answers(speaker, [[waiting(3)]], SHORT))


def test_words_are_drawn_from_a_seed_of_the_batch_not_of_what_came_before(
    speaker: Speaker, rows: list[Waiting]
) -> None:
    warm = Sampling(max_new_tokens=8, temperature=2.0, seed=0)
    first, second, *_ = list(answers(speaker, batches(rows, 3), warm))
    (alone,) = answers(speaker, batches(rows, 3)[1:2], warm)
    assert alone == second
    other = next(answers(speaker, batches(rows, 3), Sampling(max_new_tokens=8, seed=1)))
    assert other.keys() == first.keys()
    assert other != first
